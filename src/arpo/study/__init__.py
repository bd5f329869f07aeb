"""Studies: many runs of one recipe, cell by cell and seed by seed, and what they say together."""
