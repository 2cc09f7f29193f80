"""What recipes have in common: settings of plain kinds that are checked, and may be given as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

__all__ = ["check_choices", "override"]

_Settings = TypeVar("_Settings")


def check_choices(settings: Any) -> None:
    """See that every setting that is one of a few names is one of them.

    Args:
        settings: A dataclass.

    Raises:
        ValueError: If one is not.
    """
    for name, kind in get_type_hints(type(settings)).items():
        choices = get_args(kind)
        if choices and getattr(settings, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(settings, name)!r}")


def override(settings: _Settings, assignments: Iterable[str]) -> _Settings:
    """Change settings given as text.

    Args:
        settings: A dataclass of numbers, truth values and names.
        assignments: ``"name=value"`` each.

    Raises:
        ValueError: Unknown name, or a value of the wrong kind.
    """
    kinds = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if name not in kinds or not equals:
            known = ", ".join(field.name for field in fields(settings))  # type: ignore[arg-type]
            raise ValueError(f"expected NAME=VALUE with one of the settings {known}; got {assignment!r}")
        changes[name] = _parse(name, text, kinds[name])
    return replace(settings, **changes)  # type: ignore[type-var]


def _parse(name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in answers:
            raise ValueError(f"{name} must be yes or no, got {text!r}")
        return answers[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{name} must be a number ({kind.__name__}), got {text!r}") from None
    return text
