"""How well distances agree with people: 2AFC and JND on BAPPS, rank correlation on lists of judged pairs.

A command, not a library: ``python -m bapps_eval --help``. For example

    python -m bapps_eval --root dataset --pairs blur/scores.csv --metric l2 lpips-alex afv --html report.html

prints tables with a row for each metric and a column for each set, and writes a page with plots and a gallery.
``python -m bapps_eval report RESULTS.npz`` makes tables and page again from what ``--results`` has kept.

``data`` finds the sets and ``download`` fetches BAPPS; ``loader`` decodes the images,
``metrics`` are the distances and ``measuring`` takes them; ``scores`` compares them with people; ``results`` keeps the
raw distances, and ``report`` and ``html`` write what came out.
"""
