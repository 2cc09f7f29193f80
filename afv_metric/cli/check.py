"""``check``: a quality gate, for what draws images and must go on drawing them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from afv_metric.cli.html import pairs_page
from afv_metric.cli.items import load_metric, reader_of
from afv_metric.cli.outcome import SOME_FAILED, emit, say
from afv_metric.cli.outputs import try_outputs
from afv_metric.cli.pairs import find_pairs, measure_pairs, write_map
from afv_metric.files import atomic_write

__all__ = ["check"]


def check(options: argparse.Namespace) -> int | None:
    """Tell which images are farther from golden ones than they may be."""
    golden, new, limit, problems = options.golden, options.new, options.at_most, options.problems
    if not limit >= 0:
        raise ValueError(f"--at-most must be 0 or more, got {limit:g}")
    if golden.is_dir() != new.is_dir() or (options.pairs and not golden.is_dir()):
        raise ValueError(f"two images or two folders were expected, got {golden} and {new}")
    files = find_pairs(golden, new, options) if golden.is_dir() else {new.name: (golden, new)}
    read = [path for paths in files.values() for path in paths]
    try_outputs(options, "junit", "html", others=read)
    metric = load_metric(options)
    reader_of(options, read, metric)
    values = {name: value for batch in measure_pairs([metric], files, options) for name, (value,) in batch}
    if not values:
        problems.add("not one pair could be compared")
    above = sorted((name for name, value in values.items() if not value <= limit), key=lambda name: -values[name])
    if options.maps and above:
        spatial = load_metric(options, spatial=True)
        for number, name in enumerate(above, 1):
            file = f"{number:03d}-{re.sub(r'[^-.0-9A-Za-z]+', '_', name)[-99:]}.png"
            write_map(spatial, files[name], options, options.maps / file)
    if options.junit:
        _write_junit(options.junit, values, above, limit, problems.texts)
    if options.html:
        pairs_page(options, files, {"distance": values})
    if options.json:
        items = [{"file": name, "distance": value, "passed": name not in above} for name, value in values.items()]
        record = {"bundle": metric.bundle_name, "form": metric.form, "at_most": limit}
        emit(json.dumps({**record, "items": items, "errors": problems.texts}, indent=2))
    elif above:
        rows = [(f"{values[name]:.6g}", name) for name in above]
        emit(tabulate(rows, ("distance", "file"), tablefmt="plain", disable_numparse=True))
    say(f"{len(above)} of {len(values)} pairs above {limit:g}, {len(problems.texts)} errors")
    return SOME_FAILED if above else None


def _write_junit(file: Path, values: dict[str, float], above: list[str], limit: float, errors: list[str]) -> None:
    """Write a test case per pair, and one per error."""
    failed = {name: f"distance {values[name]:.6g}, at most {limit:g}" for name in above}
    counts = {"tests": len(values) + len(errors), "failures": len(failed), "errors": len(errors)}
    suite = ElementTree.Element("testsuite", {"name": "afv-metric check", **{key: str(n) for key, n in counts.items()}})
    for name, value in values.items():
        case = ElementTree.SubElement(suite, "testcase", {"classname": "afv-metric", "name": _as_xml(name)})
        if name in failed:
            ElementTree.SubElement(case, "failure", {"message": failed[name]})
        ElementTree.SubElement(case, "system-out").text = f"distance {value:.6g}"
    for text in errors:
        name = _as_xml(text)
        case = ElementTree.SubElement(suite, "testcase", {"classname": "afv-metric", "name": name.partition(": ")[0]})
        ElementTree.SubElement(case, "error", {"message": name})
    with atomic_write(file) as temporary:
        ElementTree.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)


def _as_xml(text: str) -> str:
    """A text without the characters that XML cannot hold."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
