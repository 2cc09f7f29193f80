"""The one parser. A command's arguments are added when it is chosen, so that ``--help`` imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from afv_metric import __version__
from afv_metric.cli import arguments
from afv_metric.suggestions import did_you_mean

__all__ = ["COMMANDS", "Parser", "make_parser"]

# Module, whose function NAME runs it, and summary of each command NAME; its arguments are added by add_NAME in
# cli.arguments. bapps_eval stands above this package and is known by name alone: its module does both.
COMMANDS = {
    "compare": ("afv_metric.cli.score", "distances of images to a reference, nearest first"),
    "dirs": ("afv_metric.cli.score", "distances of the images that have the same name in two folders, and their mean"),
    "check": ("afv_metric.cli.check", "whether images are close enough to golden ones: a quality gate"),
    "matrix": ("afv_metric.cli.matrix", "distances of all pairs of the images in a folder"),
    "video": ("afv_metric.cli.video", "distances of two videos, frame by frame"),
    "sets": ("afv_metric.cli.sets", "Fisher distance and Similarity of two folders as sets of images"),
    "info": ("afv_metric.cli.about", "what is in a bundle"),
    "cite": ("afv_metric.cli.about", "a line that says exactly which distance was used"),
    "train": ("afv_metric.cli.train", "train a metric on any images"),
    "export": ("afv_metric.cli.bundle", "turn a run into a bundle, with its card and a grid of samples"),
    "adapt": ("afv_metric.cli.bundle", "whiten a bundle by your own images; minutes, and no training"),
    "report": ("afv_metric.cli.train", "draw the curves and samples of runs into one HTML file"),
    "calibrate": ("afv_metric.cli.scale", "measure what distances of a bundle amount to on natural images"),
    "validate": ("afv_metric.cli.bundle", "check that a bundle is whole and computes what it should"),
    "card": ("afv_metric.cli.bundle", "write the model card of a bundle anew"),
    "push": ("afv_metric.cli.bundle", "validate a bundle and upload it to the Hugging Face hub"),
    "eval": ("bapps_eval.command", "score perceptual metrics by how well they agree with people"),
    "eval-report": ("bapps_eval.command", "make tables and page again from the results of eval; nothing is measured"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors speak of what was typed, and suggest what was meant."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.set_defaults(parser=self)
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error arose")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; what is unknown is refused by the command that it was given to."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = options.parser
            name = unknown[0].partition("=")[0]
            known = did_you_mean(name, parser._option_string_actions) if name.startswith("-") else ""
            parser.error(f"unexpected argument {name!r}{known}")
        options.debug = getattr(options, "debug", False)
        return options

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names) or f"; choose from {', '.join(names)}"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}")


def make_parser(command: str) -> Parser:
    """Make the parser of ``afv-metric``, with the arguments of one command; the others are only listed."""
    parser = Parser(
        prog="afv-metric",
        description="Perceptual distances between images, from Adversarial Fisher Vectors.",
        epilog="Exit status: 0 all done, 1 some items failed, 2 wrong usage or input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        added = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == command:
            added.set_defaults(command=lambda options: getattr(import_module(COMMANDS[command][0]), command)(options))
            home = arguments if module.startswith("afv_metric.") else import_module(module)
            getattr(home, f"add_{name.replace('-', '_')}")(added)
    return parser
