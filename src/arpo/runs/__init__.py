"""What a run leaves on disk, and how it gets there whole: the run folder, checkpoints, locks and disk space."""
