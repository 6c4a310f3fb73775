"""`make bench`: speed as ratios within one run, on the built-in model (or any other folder)."""
