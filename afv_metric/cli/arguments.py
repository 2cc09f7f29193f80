"""What every command of this package takes; nothing heavy is imported, so that ``--help`` comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.cli.options import add, add_reading, add_tiles, count, real, whole

_IMAGES = "folders or archives of images; or streams: URLs of tar files, datasets:NAME"
_CSV = "write the CSV there, row by row, not to stdout"


def add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("reference", type=Path, metavar="REF", help="image to compare with")
    command.add_argument("images", type=Path, nargs="+", metavar="IMG", help="images of its size, or folders of such")
    add(command, "json")
    command.add_argument("--map", type=Path, metavar="PNG", help="write a heat map of the distance to the one IMG")
    add(command, "html")
    command.add_argument(
        "--scale", action="store_true", help="add distances as strengths of blur, JPEG and noise on REF"
    )
    _add_sizes(command)
    _add_measuring(command)


def add_dirs(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder0", type=Path, metavar="DIR0", help="folder of images")
    command.add_argument("folder1", type=Path, metavar="DIR1", help="folder of images of the same names or stems")
    command.add_argument("--csv", type=Path, metavar="FILE", help=_CSV)
    command.add_argument("--resume", action="store_true", help="keep the rows that are in --csv, and add the others")
    command.add_argument(
        "--metric", nargs="+", metavar="NAME",
        help="a column for each: afv, and what afv-metric eval knows: lpips-alex, ssim, dists, MODULE:CALLABLE, ...",
    )  # fmt: skip
    add(command, "json", help="print JSON at the end, with the means, and no CSV")
    add(command, "html")
    _add_pairing(command)
    _add_sizes(command)
    _add_measuring(command)


def add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("golden", type=Path, metavar="GOLDEN", help="image, or folder of images, as they should be")
    command.add_argument("new", type=Path, metavar="NEW", help="image, or folder of images, to check")
    command.add_argument("--at-most", type=real, required=True, metavar="T", help="largest distance that passes")
    add(command, "json")
    command.add_argument("--junit", type=Path, metavar="XML", help="write a report that CI systems show")
    command.add_argument("--maps", type=Path, metavar="DIR", help="write a heat map of each pair above the limit there")
    add(command, "html")
    _add_pairing(command)
    _add_sizes(command)
    _add_measuring(command)


def add_matrix(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="DIR", help="folder of images")
    command.add_argument("--csv", type=Path, metavar="FILE", help=_CSV)
    add(command, "html")
    _add_measuring(command)


def add_video(command: argparse.ArgumentParser) -> None:
    command.add_argument("first", type=Path, metavar="A", help="video file, or folder of frames")
    command.add_argument("second", type=Path, metavar="B", help="video of as many frames of the same size")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write a row per frame there, as it comes")
    add(command, "json", "weights", "form")
    add_reading(command)
    add(command, "device", "quiet")


def add_sets(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder0", type=Path, metavar="DIR0", help="folder of images")
    command.add_argument("folder1", type=Path, metavar="DIR1", help="folder of images")
    command.add_argument(
        "--size", type=whole, choices=(32, 64),
        help="compare the middle squares, the shorter side scaled to this many pixels; default: the training size",
    )  # fmt: skip
    command.add_argument("--count", type=count(), metavar="N", help="files to draw from each folder; default: all")
    command.add_argument("--resamples", type=count(), default=2000, metavar="R", help="bootstrap resamples (2000)")
    command.add_argument("--seed", type=whole, default=0, help="seed of the draws (0)")
    add(command, "json", "html", "weights")
    add_reading(command)
    add(command, "device", "batch-size", "quiet")


def add_info(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "weights", nargs="?", metavar="BUNDLE", help="name, folder or hub id; the default if not given"
    )
    add(command, "json")


def add_cite(command: argparse.ArgumentParser) -> None:
    add(command, "weights", "form")


def add_calibrate(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="BUNDLE", help="folder of the bundle, to which scale.json is added")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of natural images")
    command.add_argument("--count", type=count(2), default=200, metavar="N", help="images, evenly spread (200)")
    add_reading(command)
    add(command, "device", "quiet")
    command.set_defaults(form=None)


def add_train(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "A run that was interrupted goes on with the same command. 'afv-metric export' makes a bundle of a run, "
        "'afv-metric report' draws it; 'afv-metric adapt' needs no training."
    )
    command.add_argument(
        "recipe", metavar="RECIPE", help="folder (your own images), imagenet, cifar10 or another recipe"
    )
    command.add_argument("--data", nargs="+", metavar="IMAGES", help=_IMAGES)
    command.add_argument(
        "--held-out", nargs="+", default=[],
        help="images that only the monitors see; a share of the data if none are given",
    )  # fmt: skip
    command.add_argument("--out", type=Path, help="folder of the run; an interrupted run there is resumed")
    command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings")
    command.add_argument("--show", action="store_true", help="print the settings of the recipe, and exit")
    command.add_argument(
        "--init", metavar="BUNDLE",
        help="start both networks, and take their shapes, from a bundle; none: from scratch "
        f"(default: {DEFAULT_BUNDLE} for the recipe folder, none for the others)",
    )  # fmt: skip
    _add_judged(command, "watch the agreement with them")
    add_tiles(command)
    add_reading(command)
    command.add_argument(
        "--on-divergence", choices=["stop", "rollback"], default="stop",
        help="when training fails: stop, or go back two checkpoints and on with half the rates",
    )  # fmt: skip
    add(command, "device", "quiet")


def add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run", metavar="RUN", help="folder of the run, or one of its checkpoints; with --onnx a bundle"
    )
    command.add_argument("--out", type=Path, help="folder of the bundle")
    command.add_argument(
        "--onnx", type=Path, metavar="FILE", help="write the distance of a bundle as an ONNX model instead"
    )
    command.add_argument("--checkpoint", default="latest", help="latest, best (by Fisher Similarity) or an iteration")
    command.add_argument("--name", help="name of the bundle; that of the folder if not given")
    command.add_argument("--samples", type=count(), default=10_000, help="generated samples for the statistics (10000)")
    command.add_argument("--seed", type=whole, default=0, help="seed of the samples (0)")
    add(command, "form", help="form of the distance; activation, or with --onnx that of the bundle")
    command.add_argument("--levels", type=real, nargs="+", help="weight of each level of the pyramid, finest first")
    command.add_argument(
        "--blocks", type=count(0), nargs="*", help="blocks whose layers count in the form local; all layers if empty"
    )
    command.add_argument(
        "--terms", nargs="+", metavar="KIND:LEVEL:LAYERS:WEIGHT",
        help="terms of the form activation, as direction:1:7:1 texture:0:3:1",
    )  # fmt: skip
    command.add_argument("--pooling", type=real, help="exponent of the pooling over positions")
    command.add_argument("--epsilon", type=real, default=0.03, help="relative floor of the whitening (0.03)")
    command.add_argument("--data-name", default="", help="what the run was trained on, for the record")
    command.add_argument("--licence", default="unstated", help="licence of the weights")
    add(command, "device", "quiet")


def add_adapt(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", nargs="+", required=True, metavar="IMAGES", help=_IMAGES)
    command.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    command.add_argument(
        "--init", metavar="BUNDLE", default=DEFAULT_BUNDLE, help="whose network (default: %(default)s)"
    )
    command.add_argument("--name", help="name of the new bundle; that of the folder if not given")
    command.add_argument("--samples", type=count(), default=5_000, help="crops of the images (5000)")
    command.add_argument("--seed", type=whole, default=0, help="seed of the crops (0)")
    command.add_argument("--channels", type=count(), metavar="C", help="channels of the images (default: the bundle's)")
    add_tiles(command)
    add_reading(command)
    add(command, "device", "quiet")


def add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN | BUNDLE", help="folders of the runs; or with --data one bundle"
    )
    command.add_argument("--out", type=Path, help="the HTML file; report.html in the first folder if not given")
    command.add_argument(
        "--data", nargs="+", metavar="IMAGES",
        help="images: report what the bundle makes of them, beside the bundle --before; needs no judgements",
    )  # fmt: skip
    command.add_argument(
        "--before", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="what to compare with (default: %(default)s)"
    )
    _add_judged(command, "report the agreement with them")
    add_tiles(command)
    add_reading(command)
    add(command, "quiet")


def add_validate(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", metavar="BUNDLE", help="name, folder or hub id")
    command.add_argument("--samples", type=count(), default=1_000, help="fresh samples for the whitening (1000)")
    command.add_argument("--seed", type=whole, help="seed of the samples; another than the bundle's if not given")
    add(command, "quiet")


def add_card(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument("--run", type=Path, metavar="RUN", help="folder of the run, for its curves")
    command.add_argument("--agreement", type=Path, metavar="JSON", help="what afv-metric eval --json wrote")
    command.add_argument("--chosen", default="", metavar="TEXT", help="how form, levels and epsilon were chosen")
    command.add_argument("--notes", type=Path, metavar="MARKDOWN", help="text appended as a section of notes")
    command.add_argument("--dry-run", action="store_true", help="print the card instead")
    add(command, "quiet")


def add_push(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument("repository", metavar="OWNER/NAME", help="where on the hub")
    command.add_argument("--private", action="store_true", help="if the repository is made, make it private")
    command.add_argument("--revision", help="branch; it is made if it does not exist")
    command.add_argument("--samples", type=count(), default=1_000, help="fresh samples for the validation (1000)")
    command.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    add(command, "quiet")


def _add_measuring(command: argparse.ArgumentParser) -> None:
    """The distance, how to read, where to compute, how much at a time, and silence."""
    add(command, "weights", "form")
    add_reading(command)
    add(command, "device", "batch-size", "quiet")


def _add_sizes(command: argparse.ArgumentParser) -> None:
    """What becomes of images of different sizes, which are refused by default."""
    group = command.add_mutually_exclusive_group()
    group.add_argument(
        "--resize", action="store_true", help="scale the second image to the size of the first (bicubic)"
    )
    group.add_argument("--crop", action="store_true", help="compare the middle that both images have")


def _add_pairing(command: argparse.ArgumentParser) -> None:
    """Which files of two folders belong together."""
    command.add_argument(
        "--pairs", type=Path, metavar="CSV", help="table of two columns, files below the first and the second folder"
    )


def _add_judged(command: argparse.ArgumentParser, purpose: str) -> None:
    command.add_argument(
        "--judged", type=Path, nargs="+", default=[], metavar="DIR | CSV",
        help=f"images judged by people, as afv-metric eval reads them: {purpose}",
    )  # fmt: skip
