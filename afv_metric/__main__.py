"""``python -m afv_metric``: the command ``afv-metric``."""

import sys

from afv_metric.cli import main

sys.exit(main())
