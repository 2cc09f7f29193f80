"""The model card of a bundle, written from what the run, the bundle and the measurements recorded, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from afv_metric.bundles.bundle import Bundle, load_bundle, training_stages
from afv_metric.files import atomic_write, save_figure, sha256_of
from afv_metric.images.grid import save_grid
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.log import read_records
from afv_metric.train.recipes import RECIPES, Recipe

__all__ = ["decorate_bundle", "make_card", "write_card"]

_FILES = ("config.json", "model.safetensors", "generator.safetensors")
_ROWS = 8  # of a table over iterations
_LOSSES = ("loss_d", "loss_g", "real", "fake", "corrupted")
_LICENCES = (
    "bsd-2-clause",
    "bsd-3-clause",
    "mit",
    "apache-2.0",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
)
_NO_WEIGHT = ("name", "_interval", "monitor_samples", "keep_best")  # ends of the settings that change no weight
_SETTINGS = ("seed", "resamples", "limit")  # of a measurement; others may hold paths
_log = logging.getLogger(__name__)

Record = dict[str, Any]


def decorate_bundle(folder: Path, run: str | Path | None = None) -> None:
    """Draw samples of the generator of a bundle and write its card: what ``save_bundle`` calls before a bundle counts.

    Args:
        folder: Folder of the bundle.
        run: Folder of the run that it was exported from, for the curves.
    """
    bundle = load_bundle(folder, generator=True)
    assert bundle.generator is not None
    seed = torch.Generator().manual_seed(int(bundle.sampling.get("seed", 0)))
    with torch.no_grad():
        save_grid(bundle.generator(bundle.generator.sample_latents(64, generator=seed)), folder / "samples.png")
    write_card(folder, run)


def write_card(
    folder: str | Path,
    run: str | Path | None = None,
    *,
    agreement: str | Path | None = None,
    chosen: str = "",
    notes: str = "",
) -> Path:
    """Write the model card of a bundle, its ``README.md``, and ``curves.png`` where matplotlib is installed.

    Nothing else of the bundle changes, so its hash stays: a bundle can be measured first and get its card then.

    Args:
        folder: Folder of the bundle.
        run: Folder of the run that it was exported from, for the curves; the card has none without.
        agreement: Results of ``python -m bapps_eval --json`` on this bundle.
        chosen: How the default form, the levels and epsilon were chosen.
        notes: Markdown on what the numbers say and what the limits are; a section of its own.

    Returns:
        The card.

    Raises:
        BundleError: If the bundle does not load.
        ValueError: If the results are of another bundle, or cannot be understood.
    """
    folder = Path(folder)
    if run is not None:
        _draw_curves(*_read_curves(run, _iterations(load_bundle(folder))), folder / "curves.png")
    text = make_card(folder, run, agreement=agreement, chosen=chosen, notes=notes)
    path = folder / "README.md"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def make_card(
    folder: str | Path,
    run: str | Path | None = None,
    *,
    agreement: str | Path | None = None,
    chosen: str = "",
    notes: str = "",
) -> str:
    """Make the text of a model card; see :func:`write_card`, which writes it."""
    folder = Path(folder)
    bundle = load_bundle(folder, generator=True)
    stats, monitors = _read_curves(run, _iterations(bundle)) if run is not None else ([], [])
    options = (
        (run is not None, "--run RUN"),
        (agreement is not None, "--agreement RESULTS.json"),
        (chosen, f"--chosen {shlex.quote(' '.join(chosen.split()))}"),
        (notes, "--notes NOTES.md"),
    )
    parts = [
        _front_matter(bundle),
        f"# {bundle.name}",
        _INTRODUCTION,
        _samples(bundle, folder),
        "## What it is",
        _facts(bundle, chosen),
        "## Made by",
        _commands(bundle, [text for given, text in options if given]),
        "## Settings",
        _settings(bundle),
        *_curve_sections(stats, monitors, folder),
        *(["## Agreement with people", _agreement(bundle, Path(agreement))] if agreement is not None else []),
        *(["## Notes", notes.strip()] if notes.strip() else []),
        "## Files",
        _hashes(bundle, folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# What the bundle says


def _front_matter(bundle: Bundle) -> str:
    """What the Hugging Face hub reads."""
    words = bundle.licence.get("weights", "").lower().replace(",", " ").replace(";", " ").split()
    licence = words[0] if words and words[0] in _LICENCES else "other"
    lines = [f"license: {licence}", "library_name: afv-metric", "tags:"]
    tags = ["perceptual-similarity", "image-quality", "self-supervised", "pytorch"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


_INTRODUCTION = """\
The discriminator of a GAN, trained without labels, with the Fisher statistics that make it a perceptual distance for
images: a bundle of `afv_metric`.

```python
from afv_metric import AFVDistance

distance = AFVDistance("BUNDLE")  # this folder, or its hub id owner/name
```"""


def _samples(bundle: Bundle, folder: Path) -> str:
    if not (folder / "samples.png").is_file():
        return ""
    seed = bundle.sampling.get("seed")
    return (
        "![samples of the generator](samples.png)\n\n*Samples of the averaged generator"
        + (f", latents of seed {seed}" if seed is not None else "")
        + ".*"
    )


def _facts(bundle: Bundle, chosen: str) -> str:
    assert bundle.generator is not None
    training, shape, generator = bundle.training, bundle.discriminator.config, bundle.generator.config
    recipe: Mapping[str, Any] = training.get("recipe", {})
    stages = training_stages(training)
    size = f"{shape.image_size}x{shape.image_size}"
    activation = f"leaky ReLU ({shape.slope:g})" if shape.slope else "ReLU"
    head = "energy at every position" if shape.head == "position" else "one energy an image"
    scales = ", ".join("1" if level == 0 else f"1/{2**level}" for level in range(len(bundle.levels)))
    levels = ", ".join(f"{level:g}" for level in bundle.levels)
    rows = [
        (
            "Discriminator",
            f"{size}, {shape.width} channels, {activation}, {head}; {_parameters(bundle.discriminator)} parameters",
        ),
        (
            "Generator",
            f"{generator.width} channels, {generator.latent_size} latents; {_parameters(bundle.generator)} parameters",
        ),
        ("Data", "; ".join(str(training[key]) for key in ("data", "data_fingerprint") if training.get(key))),
        ("Training", "; then ".join(filter(None, map(_training, stages)))),
        ("Machine", "; then ".join(_machine(machine) for stage in stages for machine in stage.get("machines", []))),
        ("Losses", _losses(recipe)),
        ("Weights used", _averages(recipe)),
        ("Statistics", _statistics(bundle)),
        (
            "Default form",
            f"`{bundle.form}`; levels {levels} at scales {scales}; {_counted(bundle)}; epsilon {bundle.epsilon:g}",
        ),
        ("How that was chosen", " ".join(chosen.split())),
        ("Licence", bundle.licence.get("weights", "")),
    ]
    return _table(["", ""], [(name, text) for name, text in rows if text])


def _counted(bundle: Bundle) -> str:
    """What of the network counts, and how positions are pooled, in the forms that compare them one by one."""
    if bundle.blocks is None:
        layers = "all layers"
    else:
        layers = f"the layers of block{'s' if len(bundle.blocks) > 1 else ''} {', '.join(map(str, bundle.blocks))}"
    return f"{layers} (of 0 to {len(bundle.discriminator.residual_blocks()) - 1}); pooling exponent {bundle.pooling:g}"


def _training(training: Mapping[str, Any]) -> str:
    """One run in a line."""
    recipe: Mapping[str, Any] = training.get("recipe", {})
    parts = []
    if "iterations" in training:
        parts.append(f"{training['iterations']:,} iterations")
    if "batch_size" in recipe:
        parts.append(f"of batch {recipe['batch_size']}")
    if "hours" in training:
        parts.append(f"in {training['hours']:g} hours")
    text = " ".join(parts)
    if "seed" in recipe:
        text += f", seed {recipe['seed']}"
    if recipe.get("iterations", 0) > training.get("iterations", math.inf):
        text += f"; the run was set to {recipe['iterations']:,}"
    if training.get("rate_factor", 1) != 1:
        text += f"; after rolling back, at {training['rate_factor']:g} of the learning rates"
    if training.get("init"):
        text += f"; started from {training['init']}"
    return text


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [str(machine[key]) for key in ("processor", "instructions", "device") if machine.get(key)]
    for key, one in (("threads", "thread"), ("processes", "process")):
        if key in machine:
            parts.append(f"{machine[key]} {one if machine[key] == 1 else key}")
    return ", ".join([*parts, *([f"torch {machine['torch']}"] if "torch" in machine else [])])


def _losses(recipe: Mapping[str, Any]) -> str:
    if not recipe:
        return ""
    known = asdict(read_recipe(recipe))
    where = "each position's energy" if known["head"] == "position" else "the mean energy"
    parts = [f"{known['loss']} on {where}", f"gain {known['gain']:g} on it"]
    parts += ["spectral normalisation"] if known["spectral_norm"] else []
    parts += [f"{known['negatives']:g} of a batch of corrupted images as negatives"] if known["negatives"] else []
    if known["gamma"]:
        parts.append(f"generator pulled to its average by {known['gamma']:g} (noise {known['noise_std']:g})")
    parts += [f"gradient penalty {known['r1']:g} on real images"] if known.get("r1") else []
    return "; ".join(parts)


def _averages(recipe: Mapping[str, Any]) -> str:
    if not recipe:
        return ""
    known = read_recipe(recipe)
    return (
        f"Polyak averages: discriminator {known.discriminator_average:g}, generator {known.generator_average:g} "
        "an iteration"
    )


def _statistics(bundle: Bundle) -> str:
    sampling = bundle.sampling
    parts = [f"{bundle.statistics.count:,} samples"]
    parts += [f"source: {sampling['source']}"] if "source" in sampling else []
    parts += [f"augmentation {sampling['augmentation']}"] if "augmentation" in sampling else []
    parts += [f"of {sampling['data_fingerprint']}"] if "data_fingerprint" in sampling else []
    parts += [str(sampling["generator_mode"])] if "generator_mode" in sampling else []
    parts += [f"seed {sampling['seed']}"] if "seed" in sampling else []
    return ", ".join([*parts, "accumulated in float64"])


def _commands(bundle: Bundle, options: Sequence[str]) -> str:
    stages = training_stages(bundle.training)
    if not all(stage.get("recipe") for stage in stages):
        return "The bundle records no recipe."
    commands = []
    for number, stage in enumerate(stages[:-1], 1):
        name = _name_in(stages[number]["init"])
        commands.append(_train_command(stage, f"RUN{number}"))
        commands.append(f"python -m afv_metric.train export RUN{number} --out {name}")
    levels = " ".join(f"{level:g}" for level in bundle.levels)
    samples = f"--samples {bundle.statistics.count} --seed {bundle.sampling.get('seed', 0)}"
    adapted = bundle.sampling.get("bundle")  # the one before, if the statistics are of images
    export = [
        f"python -m afv_metric.train export RUN --out {_name_in(adapted) if adapted else 'BUNDLE'}",
        *([] if adapted else [f"--name {shlex.quote(bundle.name)} {samples}"]),
        f"--form {bundle.form} --levels {levels}",
        " ".join(["--blocks", *map(str, bundle.blocks or ())]),
        f"--pooling {bundle.pooling:g} --epsilon {bundle.epsilon:g}",
    ]
    for option, text in (("data-name", bundle.training.get("data")), ("licence", bundle.licence.get("weights"))):
        export += [f"--{option} {shlex.quote(text)}"] if text else []
    commands += [_train_command(stages[-1], "RUN"), " ".join(export)]
    if adapted:
        command = f"python -m afv_metric.train adapt --data IMAGES --out BUNDLE --init {_name_in(adapted)}"
        commands.append(f"{command} --name {shlex.quote(bundle.name)} {samples}")
    commands.append(" ".join(["python -m afv_metric.train card BUNDLE", *options]))
    return "\n".join(["```sh", *commands, "```"])


def _train_command(training: Mapping[str, Any], run: str) -> str:
    recipe = read_recipe(training["recipe"])
    base = RECIPES.get(recipe.name, Recipe())
    settings = asdict(recipe) | {"iterations": int(training.get("iterations", 0))}
    changed = [
        f"{name}={value}"
        for name, value in settings.items()
        if value != getattr(base, name) and not name.endswith(_NO_WEIGHT)
    ]
    command = ["python -m afv_metric.train", base.name, f"--data DATA --out {run}"]
    command += [f"--init {_name_in(training['init'])}"] if "init" in training else []
    command += [f"--set {shlex.join(changed)}"] if changed else []
    return " ".join(command)


def _name_in(origin: str) -> str:
    """The name in a record ``"name hash"`` of a bundle, for a command line; ``none`` if there was no bundle."""
    return shlex.quote((origin.split() or ["none"])[0])


def _settings(bundle: Bundle) -> str:
    recipe = bundle.training.get("recipe", {})
    return _table(["setting", "value"], [(f"`{name}`", str(value)) for name, value in recipe.items()])


def _hashes(bundle: Bundle, folder: Path) -> str:
    rows = [(file, f"{(folder / file).stat().st_size:,}", f"`{sha256_of(folder / file)}`") for file in _FILES]
    return _table(["file", "bytes", "sha256"], rows) + (
        "\n\nThe hash of `config.json`, which holds the other two, is the hash of the bundle. "
        "`python -m afv_metric.train validate BUNDLE` checks them, and that the bundle computes what it should."
    )


# What the run says


def _iterations(bundle: Bundle) -> int:
    return int(bundle.training.get("iterations", 0))


def _read_curves(run: str | Path, iterations: int) -> tuple[list[Record], list[Record]]:
    """Lines of ``stats.jsonl`` and ``monitors.jsonl`` up to the bundle's checkpoint."""
    run = Path(run)
    run = run.parent if run.is_file() else run
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run {run}")
    stats, monitors = (
        [line for line in read_records(run / name) if line["iteration"] <= iterations]
        for name in ("stats.jsonl", "monitors.jsonl")
    )
    return stats, monitors


def _curve_sections(stats: list[Record], monitors: list[Record], folder: Path) -> list[str]:
    sections = []
    if (stats or monitors) and (folder / "curves.png").is_file():
        sections.append("![curves of the run](curves.png)")
    if stats:
        keys = [key for key in _LOSSES if key in stats[-1]]
        rows, since = [], 0
        for index in _spread(len(stats)):
            some = stats[since : index + 1]
            means = [sum(line[key] for line in some) / len(some) for key in keys]
            rows.append([f"{stats[index]['iteration']:,}", *(f"{mean:.3f}" for mean in means)])
            since = index + 1
        sections.append(_table(["iteration", *keys], rows))
        sections.append("Losses and mean energies, each a mean over the lines of `stats.jsonl` since the row above.")
    if monitors:
        keys = [key for key in dict.fromkeys(key for line in monitors for key in line) if _is_shown(key)]
        rows = [
            [f"{line['iteration']:,}", *(f"{line[key]:.3f}" if key in line else "" for key in keys)]
            for line in (monitors[index] for index in _spread(len(monitors)))
        ]
        if keys:
            sections.append(_table(["iteration", *(key.replace("_", " ") for key in keys)], rows))
            sections.append("Monitors of the run, from `monitors.jsonl`.")
    return ["## Curves", *sections] if sections else []


def _is_shown(key: str) -> bool:
    return key.startswith("fisher_similarity/") or (key.startswith(("agreement/", "random_")) and key.endswith("/mean"))


def _spread(count: int) -> list[int]:
    """At most so many indices, evenly spread, that end with the last."""
    wanted = min(count, _ROWS)
    return [(row + 1) * count // wanted - 1 for row in range(wanted)]


def _draw_curves(stats: list[Record], monitors: list[Record], path: Path) -> None:
    """Draw what the tables hold into a PNG; without matplotlib there is none, nor one of earlier."""
    panels = {
        "losses": (stats, [key for key in _LOSSES[:2] if stats and key in stats[-1]]),
        "mean energies": (stats, [key for key in _LOSSES[2:] if stats and key in stats[-1]]),
        "Fisher Similarity": (monitors, _keys(monitors, ("fisher_similarity/",))),
        "agreement with people": (monitors, _keys(monitors, ("agreement/", "random_"))),
    }
    panels = {title: panel for title, panel in panels.items() if panel[1]}
    drawable = importlib.util.find_spec("matplotlib") is not None
    if not drawable:
        _log.info('the card has no curves.png without matplotlib: pip install "afv-metric[plots]"')
    if not drawable or not panels:
        path.unlink(missing_ok=True)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, (title, (lines, keys)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for key in keys:
            some = [line for line in lines if key in line]
            axes.plot([line["iteration"] for line in some], [line[key] for line in some], label=key, linewidth=1)
        axes.set(title=title, xlabel="iteration")
        axes.legend(fontsize=6)
    save_figure(figure, path)


def _keys(lines: list[Record], prefixes: tuple[str, ...]) -> list[str]:
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key for key in keys if key.startswith(prefixes) and _is_shown(key)]


# What the measurement says


def _agreement(bundle: Bundle, path: Path) -> str:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        metrics, sets = results["metrics"], [entry["name"] for entry in results["sets"]]
        _refuse_other_bundle(bundle, metrics, path)
        first = metrics[0]["name"]
        rows = []
        for metric in metrics:
            scores = [_score(metric["scores"].get(name)) for name in sets]
            mean, difference = _mean(metric)
            rows.append([metric["name"], *scores, mean, difference if metric is not metrics[0] else ""])
        measures = ", ".join(
            f"{entry['name']}: {entry.get('measure', 'score')} of {entry.get('items', '?')} items"
            + (f" ({entry['partial']})" if entry.get("partial") else "")
            for entry in results["sets"]
        )
        given = results.get("settings", {})
        settings = {name: given[name] for name in _SETTINGS if given.get(name) is not None}
        settings |= results.get("versions", {})
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not what python -m bapps_eval --json writes: {error!r}") from error
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    return "\n\n".join(
        part
        for part in (
            _table(["", *sets, "mean", f"to {first}" if len(metrics) > 1 else ""], rows),
            f"Scores and, in brackets, 95 % bootstrap intervals. {measures}.",
            f"Measured by `python -m bapps_eval` with {shown}." if shown else "",
        )
        if part
    )


def _refuse_other_bundle(bundle: Bundle, metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    hashes = {metric["bundle_hash"] for metric in metrics if metric.get("bundle_hash")}
    if hashes and bundle.hash not in hashes:
        raise ValueError(
            f"{path} was not measured on the bundle {bundle.name} ({bundle.hash[:12]}), but on "
            f"{', '.join(sorted(str(one)[:12] for one in hashes))}; measure again, with python -m bapps_eval --weights"
        )


def _score(score: Any) -> str:
    if score is None:
        return ""
    return _with_interval(score["value"], score.get("interval")) if isinstance(score, dict) else f"{score:.3f}"


def _mean(metric: Mapping[str, Any]) -> tuple[str, str]:
    """Mean over all sets and its difference to the first metric."""
    mean: Mapping[str, Any] = metric
    if "means" in metric:
        means = list(metric["means"].values())
        mean = {"mean": means[-1]["value"]} | means[-1] if means else {}
    if "mean" not in mean:
        return "", ""
    difference = ""
    if mean.get("difference") is not None:
        difference = _with_interval(mean["difference"], mean.get("difference_interval"), "+")
    return _with_interval(mean["mean"], mean.get("interval")), difference


def _with_interval(value: float, interval: Iterable[float] | None, sign: str = "") -> str:
    text = f"{value:{sign}.3f}"
    return f"{text} [{', '.join(f'{end:{sign}.3f}' for end in interval)}]" if interval else text


# Text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _parameters(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"
