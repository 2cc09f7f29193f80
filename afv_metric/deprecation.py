"""Old names that still work, and say so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["moved"]


def moved(module: str, places: Mapping[str, str], until: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module whose names are now in other modules; a version has the old ones no more.

    Example:
        >>> find = moved("afv_metric.old", {"join": "os.path"}, until="1.0")
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     find("join")("a", "b")
        'a/b'
        >>> print(caught[0].message)
        afv_metric.old.join is now os.path.join; the old name goes with version 1.0
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        now = f"{places[name]}.{name}"
        warnings.warn(
            f"{module}.{name} is now {now}; the old name goes with version {until}", DeprecationWarning, stacklevel=2
        )
        return getattr(import_module(places[name]), name)

    return find
