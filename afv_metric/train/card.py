"""The model card of a bundle, written from what the run, the bundle and the measurements recorded, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import UndefinedError

from afv_metric.bundles.bundle import Bundle, load_bundle, training_stages
from afv_metric.files import atomic_write, save_figure, sha256_of
from afv_metric.images.grid import save_grid
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.figures import Panel, draw, points_of
from afv_metric.train.log import read_records
from afv_metric.train.provenance import commands_of

__all__ = ["decorate_bundle", "make_card", "write_card"]

_FILES = ("config.json", "model.safetensors", "generator.safetensors")
_ROWS = 8  # of a table over iterations
# Beginnings of the keys of each panel, in stats.jsonl and in monitors.jsonl.
_STATS = {"losses": ("loss_d", "loss_g"), "mean logits": ("real", "fake", "corrupted")}
_MONITORS = {
    "Fisher Similarity": ("fisher_similarity/",),
    "agreement with people": ("agreement/", "random_agreement/"),
}
_LICENCES = {"mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause"}
_LICENCES |= {"cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"}
_SETTINGS = ("seed", "resamples", "limit")  # of a measurement; others may hold paths
_log = logging.getLogger(__name__)

Record = dict[str, Any]


def decorate_bundle(folder: Path, run: str | Path | None = None) -> None:
    """Draw samples of the generator of a bundle and write its card, before ``save_bundle`` lets the bundle count."""
    bundle = load_bundle(folder, generator=True)
    assert bundle.generator is not None
    seed = torch.Generator().manual_seed(int(bundle.sampling.get("seed", 0)))
    with torch.no_grad():
        save_grid(bundle.generator(bundle.generator.sample_latents(64, generator=seed)), folder / "samples.png")
    write_card(folder, run)


def write_card(folder: str | Path, run: str | Path | None = None, **more: Any) -> Path:
    """Write the model card of a bundle, its ``README.md``, and ``curves.png`` where matplotlib is installed.

    Nothing else of the bundle changes, so its hash stays: a bundle can be measured first and get its card then. The
    arguments are those of :func:`make_card`.

    Raises:
        BundleError: If the bundle does not load.
        ValueError: If the results are of another bundle, or cannot be understood.
    """
    folder = Path(folder)
    if run is not None:
        _draw_curves(_read_curves(run, load_bundle(folder)), folder / "curves.png")
    text = make_card(folder, run, **more)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "README.md"


def make_card(
    folder: str | Path,
    run: str | Path | None = None,
    *,
    agreement: str | Path | None = None,
    chosen: str = "",
    notes: str = "",
) -> str:
    """Make the text of a model card.

    Args:
        folder: Folder of the bundle.
        run: Folder of its run, or the checkpoint, for the curves; the card has none without.
        agreement: Results of ``python -m bapps_eval --json`` on this bundle.
        chosen: How the default form, the levels and epsilon were chosen.
        notes: Markdown on what the numbers say and what the limits are; a section of its own.
    """
    folder = Path(folder)
    bundle = load_bundle(folder, generator=True)
    assert bundle.generator is not None
    stats, monitors = _read_curves(run, bundle) if run is not None else ([], [])
    stages, chosen = training_stages(bundle.training), " ".join(chosen.split())
    given = {
        "--run RUN": run is not None,
        "--agreement RESULTS.json": agreement is not None,
        f"--chosen {shlex.quote(chosen)}": chosen,
        "--notes NOTES.md": notes,
    }
    results = _read_agreement(bundle, Path(agreement)) if agreement is not None else {}
    settings = results.get("settings", {})
    recipe = bundle.training.get("recipe", {})
    networks = (("discriminator", bundle.discriminator), ("generator", bundle.generator))
    words = bundle.licence.get("weights", "").lower().replace(",", " ").replace(";", " ").split()
    try:
        card = ModelCard.from_template(
            ModelCardData(
                license=words[0] if words and words[0] in _LICENCES else "other",
                library_name="afv-metric",
                tags=["perceptual-similarity", "image-quality", "self-supervised", "pytorch"],
                model_name=bundle.name,
                eval_results=_eval_results(bundle, results) or None,
            ),
            template_path=str(Path(__file__).with_name("card.md.j2")),
            bundle=bundle,
            chosen=chosen,
            stages=stages,
            machines=[machine for stage in stages for machine in stage.get("machines", [])],
            recipe=read_recipe(recipe) if recipe else None,
            parameters={name: f"{sum(map(torch.numel, network.parameters())):,}" for name, network in networks},
            commands=commands_of(bundle, [option for option, present in given.items() if present]),
            settings=[(f"`{name}`", str(value)) for name, value in recipe.items()],
            pictures=[path.name for path in folder.glob("*.png")],
            losses=_table(stats, _STATS, mean=True),
            monitors=_table(monitors, _MONITORS, mean=False),
            agreement=results,
            measured_with={name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
            | results.get("versions", {}),
            notes=notes.strip(),
            files=[(file, f"{(folder / file).stat().st_size:,}", f"`{sha256_of(folder / file)}`") for file in _FILES],
        )
    except (TypeError, UndefinedError) as error:
        raise ValueError(f"{agreement} is not what python -m bapps_eval --json writes: {error}") from error
    return f"{str(card).rstrip()}\n"


def _read_curves(run: str | Path, bundle: Bundle) -> tuple[list[Record], list[Record]]:
    """Lines of ``stats.jsonl`` and ``monitors.jsonl`` up to the bundle's checkpoint."""
    run = Path(run).parent if Path(run).is_file() else Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run {run}")
    last = int(bundle.training.get("iterations", 0))
    stats, monitors = (read_records(run / f"{name}.jsonl") for name in ("stats", "monitors"))
    return [line for line in stats if line["iteration"] <= last], [
        line for line in monitors if line["iteration"] <= last
    ]


def _keys(lines: Sequence[Record], panels: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """The keys that each panel shows; of agreements the means alone."""
    found = dict.fromkeys(key for line in lines for key in line if "agreement/" not in key or key.endswith("/mean"))
    return {title: [key for key in found if key.startswith(starts)] for title, starts in panels.items()}


def _table(
    lines: Sequence[Record], panels: Mapping[str, tuple[str, ...]], mean: bool
) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows, evenly spread and ending with the last line; or means of the lines since the row above."""
    keys = [key for shown in _keys(lines, panels).values() for key in shown]
    wanted = min(len(lines), _ROWS)
    ends = [(row + 1) * len(lines) // wanted for row in range(wanted)]
    rows = []
    for start, end in zip([0, *ends], ends, strict=False):
        some = lines[start:end] if mean else lines[end - 1 : end]
        known = {key: [line[key] for line in some if key in line] for key in keys}
        means = [f"{sum(values) / len(values):.3f}" if values else "" for values in known.values()]
        rows.append([f"{lines[end - 1]['iteration']:,}", *means])
    return (["iteration", *(key if mean else key.replace("_", " ") for key in keys)], rows) if keys else None


def _draw_curves(curves: tuple[list[Record], list[Record]], path: Path) -> None:
    """Draw what the tables hold into a PNG; without matplotlib there is none, nor one of earlier."""
    panels = [
        Panel(title, {key: points_of(lines, key) for key in keys})
        for lines, titles in zip(curves, (_STATS, _MONITORS), strict=True)
        for title, keys in _keys(lines, titles).items()
        if keys
    ]
    if importlib.util.find_spec("matplotlib") is None:
        _log.info('the card has no curves.png without matplotlib: pip install "afv-metric[plots]"')
        panels = []
    if panels:
        save_figure(draw(panels, columns=len(panels)), path)
    else:
        path.unlink(missing_ok=True)


def _read_agreement(bundle: Bundle, path: Path) -> Record:
    """Results of a measurement of this bundle."""
    try:
        results: Record = json.loads(path.read_text(encoding="utf-8"))
        hashes = sorted({str(metric["bundle_hash"]) for metric in results["metrics"] if metric.get("bundle_hash")})
        known = [(metric["scores"], metric["means"]["mean of all"]) for metric in results["metrics"]]
        if not known or not all("name" in one for one in results["sets"]):
            raise KeyError("metrics")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not what python -m bapps_eval --json writes: {error!r}") from error
    if hashes and bundle.hash not in hashes:
        raise ValueError(
            f"{path} was not measured on the bundle {bundle.name} ({bundle.hash[:12]}), but on "
            f"{', '.join(one[:12] for one in hashes)}; measure again, with python -m bapps_eval --weights"
        )
    return results


def _eval_results(bundle: Bundle, results: Record) -> list[EvalResult]:
    """The scores of the bundle that are defined, as the hub shows them."""
    own = [metric["scores"] for metric in results.get("metrics", []) if metric.get("bundle_hash") == bundle.hash][:1]
    return [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type=one["name"],
            dataset_name=one["name"],
            metric_type=one["measure"],
            metric_value=round(scores[one["name"]]["value"], 4),
        )
        for scores in own
        for one in results["sets"]
        if scores[one["name"]]["value"] is not None
    ]
