"""The distance beside metrics of piq: ``pip install piq && python examples/with_piq.py REFERENCE IMAGE...``.

All are modules of images in [0, 1] that give one number, losses too: what works with one works with the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import piq
from tabulate import tabulate
from torch import nn

from afv_metric import AFVDistance, read_image


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the distances of each image to the reference."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("reference")
    parser.add_argument("images", nargs="+")
    options = parser.parse_args(arguments)
    metrics: dict[str, nn.Module] = {
        "AFV": AFVDistance(normalize=True, reduction="mean"),
        "1 - SSIM": piq.SSIMLoss(),
        "GMSD": piq.GMSDLoss(),
        "1 - VIF": piq.VIFLoss(),
    }
    reference, *images = (read_image(path) / 255 for path in (options.reference, *options.images))
    rows = [
        [path, *(float(metric(image, reference)) for metric in metrics.values())]
        for path, image in zip(options.images, images, strict=True)
    ]
    print(tabulate(rows, ("", *metrics), tablefmt="plain", floatfmt=".4g"))


if __name__ == "__main__":
    main()
