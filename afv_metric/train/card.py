"""The model card of a bundle, written from what the run, the bundle and the measurements recorded, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import logging
import shlex
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import UndefinedError

from afv_metric.bundles.bundle import FILES, Bundle, load_bundle, training_stages
from afv_metric.files import atomic_write, save_figure, sha256_of
from afv_metric.images.grid import save_grid
from afv_metric.train.checkpoint import read_recipe
from afv_metric.train.figures import Panel, draw, points_of
from afv_metric.train.log import read_records
from afv_metric.train.provenance import commands_of

__all__ = ["decorate_bundle", "make_card", "write_card"]

# Panels of the curves: their title, the log, and the beginnings of the keys in it.
_PANELS = (
    ("losses", "stats", ("loss_d", "loss_g")),
    ("mean logits", "stats", ("real", "fake", "corrupted")),
    ("Fisher Similarity", "monitors", ("fisher_similarity/",)),
    ("agreement with people", "monitors", ("agreement/", "random_agreement/")),
)
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
        _draw_curves(Path(run), load_bundle(folder), folder / "curves.png")
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
        run: Folder of its run, or the checkpoint, that the curves in the folder are of; for the commands.
        agreement: Results of ``python -m bapps_eval --json`` on this bundle.
        chosen: How the default form, the levels and epsilon were chosen.
        notes: Markdown on what the numbers say and what the limits are; a section of its own.
    """
    folder = Path(folder)
    bundle = load_bundle(folder, generator=True)
    assert bundle.generator is not None
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
            agreement=results,
            measured_with={name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
            | results.get("versions", {}),
            notes=notes.strip(),
            files=[(file, f"{(folder / file).stat().st_size:,}", f"`{sha256_of(folder / file)}`") for file in FILES],
        )
    except (TypeError, UndefinedError) as error:
        raise ValueError(f"{agreement} is not what python -m bapps_eval --json writes: {error}") from error
    return f"{str(card).rstrip()}\n"


def _draw_curves(run: Path, bundle: Bundle, path: Path) -> None:
    """Draw a run up to the bundle's checkpoint into a PNG; without matplotlib there is none, nor one of earlier."""
    run = run.parent if run.is_file() else run
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run {run}")
    last, panels = int(bundle.training.get("iterations", 0)), []
    for title, log, starts in _PANELS:
        lines = [line for line in read_records(run / f"{log}.jsonl") if line["iteration"] <= last]
        keys = dict.fromkeys(key for line in lines for key in line if key.startswith(starts))
        means = [key for key in keys if "agreement/" not in key or key.endswith("/mean")]
        panels += [Panel(title, {key: points_of(lines, key) for key in means})] if means else []
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
