"""``python -m bapps_eval``: the command ``afv-metric eval``; ``python -m bapps_eval report``: ``eval-report``."""

import sys
from collections.abc import Sequence

from afv_metric import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see :func:`afv_metric.cli.main`."""
    return cli.main(["eval", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
