"""The cold start: supervised fine-tuning on traces, and the cache of its results."""
