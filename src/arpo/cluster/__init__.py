"""Learner ranks and vLLM's servers as actors of Ray, imported by functions: it is an extra."""
