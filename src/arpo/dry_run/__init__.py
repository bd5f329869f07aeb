"""`arpo train RECIPE --try`: a run tried on one task, and an estimate of what the whole will take."""
