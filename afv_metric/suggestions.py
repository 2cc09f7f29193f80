"""What somebody meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "explain_lpips"]

_LPIPS = ("alex", "vgg", "vgg16", "squeeze", "lpips", "lpips-alex", "lpips-vgg", "lpips-squeeze")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names that are like a word, or nothing.

    Example:
        >>> f"there is no form 'fihser'{did_you_mean('fihser', ['fisher', 'local', 'activation'])}"
        "there is no form 'fihser'; did you mean 'fisher'?"
        >>> did_you_mean("colour", ["fisher", "local"])
        ''
    """
    names = {name.lower(): name for name in known}
    close = [names[name] for name in difflib.get_close_matches(word.lower(), list(names), n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def explain_lpips(name: str) -> str:
    """The end of an error message for those who know lpips: what its networks are called here, or nothing."""
    if name.lower() not in _LPIPS:
        return ""
    return f"; {name!r} is a network of lpips: AFVDistance() has one of its own, and takes the name of a bundle or none"
