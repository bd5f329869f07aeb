"""A run's components built from its configuration: engine, chat format, tools, reward, model.

Training, evaluation and chat share them.
"""
