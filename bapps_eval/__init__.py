"""How well distances agree with people: 2AFC and JND on BAPPS, rank correlation on lists of judged pairs.

A command, not a library: ``python -m bapps_eval --help``. For example

    python -m bapps_eval --root dataset --pairs blur/scores.csv --metric l2 lpips-alex afv --json scores.json

prints a table with a row for each metric and a column for each set. ``data`` reads the sets, ``metrics``
makes the distances and takes them over a set, ``scores`` compares them with people, ``report`` writes the
result.
"""
