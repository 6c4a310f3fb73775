"""How it runs: the command line, the run folder, the log, the cluster, the report, the recipes."""
