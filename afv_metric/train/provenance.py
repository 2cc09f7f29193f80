"""The commands that make a bundle again, from what it records."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from afv_metric.bundles.bundle import Bundle, training_stages
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.recipes import RECIPES, Recipe

__all__ = ["commands_of"]

_NO_WEIGHT = ("name", "_interval", "monitor_samples", "keep_best")  # ends of the settings that change no weight


def commands_of(bundle: Bundle, card_options: Sequence[str] = ()) -> list[str]:
    """Give the commands that train, export and describe a bundle; none if it records no recipe.

    The options are those of the last command, which writes the card.
    """
    stages = training_stages(bundle.training)
    if not all(stage.get("recipe") for stage in stages):
        return []
    program, commands = "python -m afv_metric.train", []
    for number, stage in enumerate(stages[:-1], 1):
        commands.append(f"{program} {_train_command(stage, f'RUN{number}')}")
        commands.append(f"{program} export RUN{number} --out {_name_in(stages[number]['init'])}")
    adapted = bundle.sampling.get("bundle")  # the one before, if the statistics are of images
    samples = f"--name {shlex.quote(bundle.name)} --samples {bundle.statistics.count}"
    samples += f" --seed {bundle.sampling.get('seed', 0)}"
    export = [
        f"{program} export RUN --out {_name_in(adapted) if adapted else f'BUNDLE {samples}'}",
        f"--form {bundle.form} --levels {' '.join(f'{level:g}' for level in bundle.levels)}",
        " ".join(["--blocks", *map(str, bundle.blocks or ())]),
        " ".join(["--terms", *map(str, bundle.activation_terms)]),
        f"--pooling {bundle.pooling:g} --epsilon {bundle.epsilon:g}",
    ]
    for option, text in (("data-name", bundle.training.get("data")), ("licence", bundle.licence.get("weights"))):
        export += [f"--{option} {shlex.quote(text)}"] if text else []
    commands += [f"{program} {_train_command(stages[-1], 'RUN')}", " ".join(export)]
    if adapted:
        commands.append(f"{program} adapt --data IMAGES --out BUNDLE --init {_name_in(adapted)} {samples}")
    return [*commands, " ".join([f"{program} card BUNDLE", *card_options])]


def _train_command(stage: Mapping[str, Any], run: str) -> str:
    recipe = read_recipe(stage["recipe"])
    base = RECIPES.get(recipe.name, Recipe())
    changed = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for name, value in (asdict(recipe) | {"iterations": int(stage.get("iterations", 0))}).items()
        if value != getattr(base, name) and not name.endswith(_NO_WEIGHT)
    ]
    init = f" --init {_name_in(stage['init'])}" if "init" in stage else ""
    return f"{base.name} --data DATA --out {run}{init}" + (f" --set {shlex.join(changed)}" if changed else "")


def _name_in(origin: str) -> str:
    """The name in a record ``"name hash"`` of a bundle, for a command line; ``none`` if there was no bundle."""
    return shlex.quote((origin.split() or ["none"])[0])
