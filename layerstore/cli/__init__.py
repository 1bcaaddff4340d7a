"""The command line: argv, environment, progress, tables, JSON, exit codes, signals. No store logic."""
