"""``python -m afv_metric.train RECIPE ...``: the command ``afv-metric train``, and what makes bundles of runs."""

import sys
from collections.abc import Sequence

from afv_metric import cli

_BESIDE = ("adapt", "calibrate", "card", "export", "push", "report", "validate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see :func:`afv_metric.cli.main`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return cli.main(given if given[:1] and given[0] in _BESIDE else ["train", *given])


if __name__ == "__main__":
    sys.exit(main())
