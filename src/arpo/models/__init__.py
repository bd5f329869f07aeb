"""Models: where their files come from, how they are loaded, and how two of them are told apart."""
