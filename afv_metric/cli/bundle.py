"""``export``, ``adapt``, ``validate``, ``card`` and ``push``: bundles, from their making to the hub."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from afv_metric.bundles.bundle import load_bundle, reserve_folder, save_bundle
from afv_metric.bundles.golden import with_golden_distances
from afv_metric.bundles.push import push_bundle
from afv_metric.bundles.validate import validate_bundle
from afv_metric.cli.items import pictures_of, reader_of, tiling_of
from afv_metric.cli.outcome import DONE, SOME_FAILED, emit, say
from afv_metric.cli.outputs import try_outputs
from afv_metric.distributed import init_distributed, rank_and_world_size
from afv_metric.fisher.forms import Term
from afv_metric.metric import AFVDistance
from afv_metric.onnx import export_onnx
from afv_metric.runtime import find_device
from afv_metric.train.adapt import adapt_bundle
from afv_metric.train.card import decorate_bundle, make_card, write_card
from afv_metric.train.export import export_run

__all__ = ["adapt", "card", "export", "push", "validate"]


def export(options: argparse.Namespace) -> None:
    """Turn a run into a bundle, or a bundle into an ONNX model."""
    if options.onnx:
        try_outputs(options, "onnx")
        export_onnx(AFVDistance(options.run, form=options.form), options.onnx)
        return
    if options.out is None:
        raise ValueError("give --out, a folder for the bundle of the run, or --onnx FILE for the model of a bundle")
    options.run = Path(options.run)
    names = ("form", "pooling", "epsilon")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.levels is not None:
        given["levels"] = tuple(options.levels)
    if options.blocks is not None:
        given["blocks"] = tuple(options.blocks) or None
    if options.terms:
        given["terms"] = tuple(Term.parse(term) for term in options.terms)
    given["licence"] = {"weights": options.licence or "unstated"}
    with init_distributed(find_device(options.device)) as device, contextlib.ExitStack() as stack:
        if rank_and_world_size()[0] == 0:
            stack.enter_context(reserve_folder(options.out))
        bundle = export_run(
            options.run,
            options.name or options.out.resolve().name,
            checkpoint=options.checkpoint,
            samples=options.samples,
            seed=options.seed,
            device=device,
            quiet=options.quiet,
        )
        if rank_and_world_size()[0] == 0:
            named = {"data": options.data_name} if options.data_name else {}
            bundle = with_golden_distances(replace(bundle, training={**bundle.training, **named}, **given))
            run = options.run if options.run.is_dir() else options.run.parent
            save_bundle(bundle, options.out, partial(decorate_bundle, run=run))


def adapt(options: argparse.Namespace) -> None:
    """Whiten a bundle by other images."""
    with reserve_folder(options.out):
        bundle = adapt_bundle(
            load_bundle(options.init, generator=True),
            options.data,
            options.name or options.out.resolve().name,
            samples=options.samples,
            seed=options.seed,
            channels=options.channels,
            reader=reader_of(options, pictures_of(options.data)),
            tiling=tiling_of(options, cut=True),
            cache=options.cache,
            device=find_device(options.device),
            quiet=options.quiet,
        )
        save_bundle(with_golden_distances(bundle), options.out, decorate_bundle)


def validate(options: argparse.Namespace) -> int:
    """Check that a bundle is whole and computes what it should."""
    report = validate_bundle(options.bundle, samples=options.samples, seed=options.seed, quiet=options.quiet)
    emit(str(report))
    if not report.passed:
        say(f"error: {options.bundle} does not pass")
    return DONE if report.passed else SOME_FAILED


def card(options: argparse.Namespace) -> None:
    """Write the model card of a bundle anew."""
    try:
        notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"--notes {options.notes} is no text in UTF-8: {error}") from error
    make = make_card if options.dry_run else write_card
    emit(str(make(options.bundle, options.run, agreement=options.agreement, chosen=options.chosen, notes=notes)))


def push(options: argparse.Namespace) -> None:
    """Validate a bundle and upload it to the Hugging Face hub."""
    emit(
        push_bundle(
            options.bundle,
            options.repository,
            private=options.private,
            revision=options.revision,
            dry_run=options.dry_run,
            samples=options.samples,
            quiet=options.quiet,
        )
    )
