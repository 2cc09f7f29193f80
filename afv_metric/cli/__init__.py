"""The command line: one program, ``afv-metric``, whose parts ``python -m`` reaches as well."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from afv_metric.cli.outcome import Problems, run
from afv_metric.cli.parser import make_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with what follows ``afv-metric``; that of the command line if None.

    Returns:
        Exit status: 0 if all is done, 1 if some items failed, 2 after wrong usage or input, 130 if interrupted (143 by
        SIGTERM).

    Raises:
        SystemExit: With status 2 if the arguments cannot be parsed, with 0 after ``--help`` and ``--version``.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:2] == ["eval", "report"]:  # as in: python -m bapps_eval report RESULTS
        given[:2] = ["eval-report"]
    parser = make_parser(next((text for text in given if not text.startswith("-")), ""))
    options = parser.parse(given)
    options.problems = problems = Problems(options.debug)
    quiet = getattr(options, "quiet", False)
    return run(lambda: options.command(options) or problems.status, debug=options.debug, quiet=quiet)
