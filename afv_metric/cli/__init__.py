"""The command line."""

from afv_metric.cli.commands import main

__all__ = ["main"]
