"""What a run's report shows: the page, its figures and the closing table."""
