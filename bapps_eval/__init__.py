"""How well distances agree with people: 2AFC and JND on BAPPS, rank correlation on lists of judged pairs.

A command, not a library: ``afv-metric eval``, or ``python -m bapps_eval``. For example

    python -m bapps_eval --root dataset --pairs blur/scores.csv --metric l2 lpips-alex afv --html report.html

prints tables with a row per metric and a column per set, and writes a page with plots and a gallery.
"""
