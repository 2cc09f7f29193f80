"""``export``, ``adapt``, ``validate``, ``card`` and ``push``: bundles, from their making to the hub."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.cli.options import (
    FORMS,
    add_device,
    add_quiet,
    add_reading,
    add_tiles,
    count,
    pictures_of,
    reader_of,
    real,
    tiling_of,
    whole,
)
from afv_metric.cli.outcome import DONE, SOME_FAILED, emit, say
from afv_metric.cli.outputs import try_output

__all__ = ["add_adapt", "add_card", "add_export", "add_push", "add_validate"]


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    command.add_argument(
        "run", metavar="RUN", help="folder of the run, or one of its checkpoints; with --onnx a bundle"
    )
    command.add_argument("--out", type=Path, help="folder of the bundle")
    command.add_argument(
        "--onnx", type=Path, metavar="FILE", help="write the distance of a bundle as an ONNX model instead"
    )
    command.add_argument("--checkpoint", default="latest", help="latest, best (by Fisher Similarity) or an iteration")
    command.add_argument("--name", help="name of the bundle; that of the folder if not given")
    command.add_argument("--samples", type=count(), default=10_000, help="generated samples for the statistics (10000)")
    command.add_argument("--seed", type=whole, default=0, help="seed of the samples (0)")
    command.add_argument(
        "--form", choices=FORMS, help="form of the distance; activation, or with --onnx that of the bundle"
    )
    command.add_argument("--levels", type=real, nargs="+", help="weight of each level of the pyramid, finest first")
    command.add_argument(
        "--blocks", type=count(0), nargs="*", help="blocks whose layers count in the form local; all layers if empty"
    )
    command.add_argument(
        "--terms",
        nargs="+",
        metavar="KIND:LEVEL:LAYERS:WEIGHT",
        help="terms of the form activation, as direction:1:6:1 texture:0:3:4",
    )
    command.add_argument("--pooling", type=real, help="exponent of the pooling over positions")
    command.add_argument("--epsilon", type=real, default=0.03, help="relative floor of the whitening (0.03)")
    command.add_argument("--data-name", default="", help="what the run was trained on, for the record")
    command.add_argument("--licence", default="unstated", help="licence of the weights")
    add_device(command)
    add_quiet(command)
    command.set_defaults(command=_export)


def add_adapt(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``adapt``."""
    command.add_argument("--data", type=Path, nargs="+", required=True, help="folders or archives of images")
    command.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    command.add_argument(
        "--init", metavar="BUNDLE", default=DEFAULT_BUNDLE, help="whose network (default: %(default)s)"
    )
    command.add_argument("--name", help="name of the new bundle; that of the folder if not given")
    command.add_argument("--samples", type=count(), default=5_000, help="crops of the images (5000)")
    command.add_argument("--seed", type=whole, default=0, help="seed of the crops (0)")
    command.add_argument("--channels", type=count(), metavar="C", help="channels of the images (default: the bundle's)")
    add_tiles(command)
    add_reading(command)
    add_device(command)
    add_quiet(command)
    command.set_defaults(command=_adapt)


def add_validate(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``validate``."""
    command.add_argument("bundle", metavar="BUNDLE", help="name, folder or hub id")
    command.add_argument("--samples", type=count(), default=1_000, help="fresh samples for the whitening (1000)")
    command.add_argument("--seed", type=whole, help="seed of the samples; another than the bundle's if not given")
    add_quiet(command)
    command.set_defaults(command=_validate)


def add_card(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``card``."""
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument("--run", type=Path, metavar="RUN", help="folder of the run, for its curves")
    command.add_argument("--agreement", type=Path, metavar="JSON", help="what afv-metric eval --json wrote")
    command.add_argument("--chosen", default="", metavar="TEXT", help="how form, levels and epsilon were chosen")
    command.add_argument("--notes", type=Path, metavar="MARKDOWN", help="text appended as a section of notes")
    command.add_argument("--dry-run", action="store_true", help="print the card instead")
    add_quiet(command)
    command.set_defaults(command=_card)


def add_push(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``push``."""
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument("repository", metavar="OWNER/NAME", help="where on the hub")
    command.add_argument("--private", action="store_true", help="if the repository is made, make it private")
    command.add_argument("--revision", help="branch; it is made if it does not exist")
    command.add_argument("--samples", type=count(), default=1_000, help="fresh samples for the validation (1000)")
    command.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    add_quiet(command)
    command.set_defaults(command=_push)


def _export(options: argparse.Namespace) -> None:
    from functools import partial

    from afv_metric.bundles.bundle import reserve_folder, save_bundle
    from afv_metric.distributed import init_distributed, rank_and_world_size
    from afv_metric.fisher.forms import Term
    from afv_metric.runtime import find_device
    from afv_metric.train.card import decorate_bundle
    from afv_metric.train.export import export_run

    if options.onnx:
        from afv_metric.metric import AFVDistance
        from afv_metric.onnx import export_onnx

        try_output(options.onnx, "--onnx")
        export_onnx(AFVDistance(options.run, form=options.form), options.onnx)
        return
    if options.out is None:
        raise ValueError("give --out, a folder for the bundle of the run, or --onnx FILE for the model of a bundle")
    options.run = Path(options.run)
    given = {name: getattr(options, name) for name in ("levels", "pooling") if getattr(options, name) is not None}
    if options.blocks is not None:
        given["blocks"] = options.blocks or None
    if options.terms:
        given["terms"] = [Term.parse(term) for term in options.terms]
    with init_distributed(find_device(options.device)) as device, contextlib.ExitStack() as stack:
        if rank_and_world_size()[0] == 0:
            stack.enter_context(reserve_folder(options.out))
        bundle = export_run(
            options.run,
            options.name or options.out.resolve().name,
            checkpoint=options.checkpoint,
            samples=options.samples,
            seed=options.seed,
            form=options.form or "activation",
            epsilon=options.epsilon,
            licence=options.licence,
            device=device,
            quiet=options.quiet,
            provenance={"data": options.data_name} if options.data_name else None,
            **given,
        )
        if rank_and_world_size()[0] == 0:
            run = options.run if options.run.is_dir() else options.run.parent
            save_bundle(bundle, options.out, partial(decorate_bundle, run=run))


def _adapt(options: argparse.Namespace) -> None:
    from afv_metric.bundles.bundle import load_bundle, reserve_folder, save_bundle
    from afv_metric.runtime import find_device
    from afv_metric.train.adapt import adapt_bundle
    from afv_metric.train.card import decorate_bundle

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
        save_bundle(bundle, options.out, decorate_bundle)


def _validate(options: argparse.Namespace) -> int:
    from afv_metric.bundles.validate import validate_bundle

    report = validate_bundle(options.bundle, samples=options.samples, seed=options.seed, quiet=options.quiet)
    emit(str(report))
    if not report.passed:
        say(f"error: {options.bundle} does not pass")
    return DONE if report.passed else SOME_FAILED


def _card(options: argparse.Namespace) -> None:
    from afv_metric.train.card import make_card, write_card

    try:
        notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"--notes {options.notes} is no text in UTF-8: {error}") from error
    make = make_card if options.dry_run else write_card
    emit(str(make(options.bundle, options.run, agreement=options.agreement, chosen=options.chosen, notes=notes)))


def _push(options: argparse.Namespace) -> None:
    from afv_metric.bundles.push import push_bundle

    pushed = push_bundle(
        options.bundle,
        options.repository,
        private=options.private,
        revision=options.revision,
        dry_run=options.dry_run,
        samples=options.samples,
        quiet=options.quiet,
    )
    emit(str(pushed))
