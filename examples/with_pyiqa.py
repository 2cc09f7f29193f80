"""The distance in pyiqa: ``pip install pyiqa && python examples/with_pyiqa.py REFERENCE IMAGE...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pyiqa

from afv_metric.pyiqa import register


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the distance of each image to the reference."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("reference")
    parser.add_argument("images", nargs="+")
    options = parser.parse_args(arguments)
    register()
    metric = pyiqa.create_metric("afv", device="cpu")
    for path in options.images:
        print(f"{metric(path, options.reference).item():.6g} {path}")


if __name__ == "__main__":
    main()
