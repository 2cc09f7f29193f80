"""What recipes have in common: settings of plain kinds that are checked, given as text, and kept by a run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from afv_metric.runtime import computes_bfloat16
from afv_metric.suggestions import did_you_mean

__all__ = ["check_choices", "override", "check_resumable", "resolve_precision"]

_Settings = TypeVar("_Settings")
_log = logging.getLogger(__name__)


def check_choices(settings: Any) -> None:
    """See that every setting of a dataclass that is one of a few names is one of them; or raise ValueError."""
    for name, kind in get_type_hints(type(settings)).items():
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        if choices and getattr(settings, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(settings, name)!r}")


def override(settings: _Settings, assignments: Iterable[str]) -> _Settings:
    """Change settings, a dataclass of numbers, truth values and names, by assignments ``"name=value"``.

    Raises:
        ValueError: If a name is unknown, or a value of the wrong kind.

    Example:
        >>> from afv_metric.train.recipes import Recipe
        >>> override(Recipe(), ["width=64", "spectral_norm=no"]).width
        64
    """
    kinds = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in kinds or not equals:
            meant = did_you_mean(name, kinds) or f"; the settings are {', '.join(kinds)}" if name not in kinds else ""
            raise ValueError(f"expected NAME=VALUE with the name of a setting; got {assignment!r}{meant}")
        changes[name] = _parse(name, text, kinds[name])
    return replace(settings, **changes)  # type: ignore[type-var]


def resolve_precision(settings: _Settings, saved: Mapping[str, Any] | None, device: torch.device) -> _Settings:
    """Decide what the precision ``"auto"`` stands for: that of a run that was saved, or what the device is fast in.

    Example:
        >>> from afv_metric.train.recipes import Recipe
        >>> resolve_precision(Recipe(), {"precision": "float16"}, torch.device("cpu")).precision
        'float16'
    """
    fast = computes_bfloat16(device)
    if settings.precision == "auto":  # type: ignore[attr-defined]
        precision = saved.get("precision", "float32") if saved else "bfloat16" if fast else "float32"
        settings = replace(settings, precision=precision)  # type: ignore[type-var]
    if settings.precision == "bfloat16" and not fast:  # type: ignore[attr-defined]
        _log.warning("%s only imitates bfloat16, many times slower than float32 (precision=float32)", device)
    return settings


def check_resumable(settings: Any, saved: Mapping[str, Any], run: Path, free: Collection[str]) -> None:
    """See that a run goes on with the saved settings that it was begun with, but for intervals and those that are free.

    Raises:
        ValueError: If others have changed; they are named.
    """
    differences = [
        f"{name} was {saved.get(name)!r} and is now {value!r}"
        for name, value in asdict(settings).items()
        if name not in free and not name.endswith("_interval") and saved.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"the run in {run} was begun with other settings: {'; '.join(differences)}. "
            "Give the same settings, or another --out for a new run."
        )


def _parse(name: str, text: str, kind: Any) -> Any:
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if kind is bool:
            expected = "yes or no"
            return answers[text.lower()]
        if kind in (int, float):
            expected = f"a number ({kind.__name__})"
            return kind(text)
        if kind == int | tuple[int, ...]:
            expected = "a number (int), or several (32,64)"
            numbers = tuple(map(int, text.split(",")))
            return numbers if len(numbers) > 1 else numbers[0]
    except (KeyError, ValueError):
        raise ValueError(f"{name} must be {expected}, got {text!r}") from None
    return text
