"""The experiments of the papers, a module and a command each: ``python -m experiments``."""

import importlib.util


def missing_matplotlib() -> str:
    """What to say where figures cannot be drawn; empty where they can."""
    hint = 'the figures are drawn by matplotlib: pip install "afv-metric[plots]"'
    return "" if importlib.util.find_spec("matplotlib") else hint
