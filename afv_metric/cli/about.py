"""``info`` and ``cite``: what is in a bundle, and which distance it is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from afv_metric import __version__
from afv_metric.bundles.bundle import load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE, list_bundles
from afv_metric.cli.outcome import emit

__all__ = ["cite", "info"]

_PAPER = "Zhai et al., NeurIPS 2019, arXiv:1910.13101"


def info(options: argparse.Namespace) -> None:
    """Print what is in a bundle."""
    bundle = load_bundle(options.weights or DEFAULT_BUNDLE)
    record: dict[str, Any] = {
        "name": bundle.name,
        "sha256": bundle.hash,
        "discriminator": asdict(bundle.discriminator.config),
        "parameters": sum(parameter.numel() for parameter in bundle.discriminator.parameters()),
        "output": bundle.output,
        "form": bundle.form,
        "levels": list(bundle.levels),
        "blocks": "all" if bundle.blocks is None else list(bundle.blocks),
        "terms": [str(term) for term in bundle.activation_terms],
        "pooling": bundle.pooling,
        "data_range": list(bundle.data_range or ("that of the formats",)),
        "statistics": {"count": bundle.statistics.count, **bundle.sampling},
        "training": dict(bundle.training),
        "licence": dict(bundle.licence),
    }
    if not options.weights:
        record["bundles that ship with the package"] = list_bundles()
    emit(json.dumps(record, indent=2) if options.json else "\n".join(_outline(record)))


def cite(options: argparse.Namespace) -> None:
    """Print which distance was used."""
    bundle = load_bundle(options.weights)
    form = options.form or bundle.form
    settings = [f"form {form}"]
    if form == "activation":
        settings.append(f"terms {' '.join(map(str, bundle.activation_terms))}")
    else:
        settings.append("levels " + "/".join(f"{weight:g}" for weight in bundle.levels))
    if form == "local" and bundle.blocks:
        settings.append("blocks " + "/".join(map(str, bundle.blocks)))
    settings += [f"pooling {bundle.pooling:g}"] if form != "fisher" else []
    emit(
        f"afv_metric {__version__}, bundle {bundle.name} (sha256 {bundle.hash[:12]}), {', '.join(settings)}; "
        f"{_PAPER}; torch {torch.__version__}"
    )


def _outline(record: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Lines ``name: value``, nested mappings indented."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from _outline(value, indent + "  ")
        else:
            yield f"{indent}{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
