"""A run's configuration: as a checked value (`RunConfig`) and as YAML."""
