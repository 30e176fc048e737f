"""The operator's command line: one file per command, errors as one line with a cure, exit codes that scripts can use.

0 is success, 1 a job that failed, 2 wrong usage or config. `choosing`, `servers`, `simulated`, `load` and `probing`
are no commands: they are what commands share or are made of.
"""
