"""``python -m afv_metric``: the command ``afv-metric``."""

import sys

from afv_metric.cli import main

if __name__ == "__main__":
    sys.exit(main())
