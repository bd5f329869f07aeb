"""A trained model as a folder that anybody can load, and its model card."""
