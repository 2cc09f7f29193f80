"""The report: what is in the file, what is left out, and that a browser shows it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from afv_metric.train import figures, report
from afv_metric.train.recipes import Recipe
from afv_metric.train.report import write_report

pytest.importorskip("matplotlib")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = [
    "Where it stands",
    "Fisher Similarity",
    "Fisher Similarity and Inception Score",
    "Mean logit",
    "Agreement with people",
    "Generator and its average",
    "Linear probe",
    "Losses",
    "Logits in the step",
    "Dead channels",
    "Singular values",
    "Samples",
    "Time",
]


def _monitors(iteration, inception):
    share = iteration / 4000
    values = {"iteration": iteration, "seconds": iteration / 10}
    values |= {"fisher_similarity/train": 0.2 + share / 2, "fisher_similarity/held_out": 0.6 - (share - 0.5) ** 2}
    values |= {f"logit/{kind}": -index for index, kind in enumerate(("train", "held_out", "generated", "negatives"))}
    values |= {"generator_drift": 50 * math.exp(-share), "probe_accuracy": share}
    for block in range(2):
        values |= {f"dead_channels/blocks.{block}.conv1": share / 4, f"dead_channels/blocks.{block}": 0.0}
        values |= {f"singular_value/blocks.{block}.{part}": 2.5 for part in ("conv1", "conv2", "shortcut")}
    for form, score in (("fisher", 0.5), ("local", 0.6), ("activation", 0.7)):
        for name in ("2afc/val", "mean"):
            values |= {f"agreement/{form}/{name}": score + share / 10, f"random_agreement/{form}/{name}": score}
    return values | ({"inception_score": 3.25, "fid": 91.5} if inception else {})


def _save_run(folder, recipe, *, monitors=True, inception=False, grids=(1000, 2000)):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    lines = [
        {"iteration": i, "seconds": i / 10, "loss_d": 1 + 1 / i, "loss_g": 0.5, "real": 0.1, "fake": -0.2}
        for i in range(10, 4001, 10)
    ]
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if monitors:
        records = [_monitors(iteration, inception) for iteration in (0, 1000, 2000, 3000, 4000)]
        (folder / "monitors.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for index, iteration in enumerate(grids):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"samples-{iteration:07d}.png")
    return folder


class _Reader(HTMLParser):
    """Headings, table rows, sources, tags and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.headings, self.rows, self.sources, self.texts, self.open = [], [], [], [], []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("h2", "th", "td", "style", "text"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        if where == "h2":
            self.headings.append(data)
        elif where in ("th", "td"):
            self.rows[-1].append(data)
        if where != "style":
            self.texts.append(data)

    def row(self, *start):
        return next(row for row in self.rows if tuple(row[: len(start)]) == start)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of two runs that differ in gamma; the second one has an Inception Score."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = Recipe(iterations=4000)
    runs = [
        _save_run(folder / "plain & <simple>", recipe),
        _save_run(folder / "proximal", replace(recipe, gamma=0.25), inception=True, grids=range(0, 20000, 1000)),
    ]
    return write_report(runs, folder / "reports" / "report.html")


@pytest.fixture(scope="module")
def read(page):
    return _Reader(page.read_text(encoding="utf-8"))


def test_all_sections_are_there_each_with_its_figure(read):
    assert read.headings == [*SECTIONS, "Recipes"]
    assert read.tags.count("svg") == len(SECTIONS) - 2  # all but the first and the samples
    assert read.tags.count("html") == read.tags.count("body") == read.tags.count("title") == 1


def test_the_file_needs_nothing_else(page, read):
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in read.sources)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page.read_text(encoding="utf-8"))


def test_names_are_text_and_never_markup(page, read):
    assert "<simple>" not in page.read_text(encoding="utf-8").replace("&lt;simple&gt;", "")
    assert read.row("plain & <simple>", "imagenet")


def test_the_summary_has_the_latest_values_and_the_best_iteration(read):
    row = read.row("proximal", "imagenet")
    assert row == ["proximal", "imagenet", "4,000", "6 min", "0.7", "0.35", "0.6 at 2,000", "0", "-1", "-2"]


def test_tables_hold_what_was_measured(read):
    assert read.row("2afc/val") == ["2afc/val", "0.6 / 0.5", "0.7 / 0.6", "0.8 / 0.7"]
    assert read.row("proximal", "0.25") == ["proximal", "0.25", "0.01", "18.4", "0.35", "3.25"]
    assert read.row("plain & <simple>", "0")[-1] == "\N{EN DASH}"


def test_the_difference_between_recipes_is_marked(read):
    assert read.row("≠ gamma") == ["≠ gamma", "0.0", "0.25"]
    assert [row[0] for row in read.rows if row and row[0].startswith("≠")] == ["≠ gamma"]
    assert read.row("width") == ["width", "[32, 32, 64, 64]", "[32, 32, 64, 64]"]


def test_at_most_eight_grids_a_run_from_first_to_last(read, page):
    shown = re.findall(r'alt="samples of proximal at iteration (\d+)"', page.read_text(encoding="utf-8"))
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == ("0", "19000")


def test_untrained_networks_are_horizontal_lines(page, monkeypatch):
    drawn = _panels(monkeypatch, page.parent.parent / "proximal")["Agreement with people"][0].curves
    lines = drawn
    assert lines["local"] == [(0, 0.6), (1000, 0.625), (2000, 0.65), (3000, 0.6 + 0.075), (4000, 0.7)]
    assert lines["local, untrained"] == [(0, 0.6), (4000, 0.6)]


def test_curves_are_what_was_recorded_and_thinned(page, monkeypatch):
    panels = _panels(monkeypatch, page.parent.parent / "proximal")
    train, held_out, gap = panels["Fisher Similarity"]
    proximal = train.curves["proximal"]
    assert proximal[-1] == (4000, 0.7)
    assert gap.curves["proximal"] == [
        (x, y - z) for (x, y), (_, z) in zip(proximal, held_out.curves["proximal"], strict=True)
    ]
    loss = panels["Losses"][0].curves["proximal"]
    assert len(loss) == 400
    thinned = figures._thin(loss)
    assert len(thinned) == 200
    assert thinned[0] == (15, pytest.approx(1 + (1 / 10 + 1 / 20) / 2))
    assert dict(panels["Time"][0].curves["proximal"])[10] == pytest.approx(0.1)
    assert panels["Dead channels"][0].curves["block 2"][-1] == (4000, 0.25)


def _panels(monkeypatch, *runs):
    """The panels of every figure of a report, which is not drawn."""
    drawn = {}
    monkeypatch.setattr(report, "draw_svg", lambda title, panels, columns: drawn.update({title: panels}) or "<svg/>")
    write_report(runs, runs[0].parent / "not-drawn.html")
    return drawn


def test_what_a_run_lacks_is_left_out_with_a_sentence(tmp_path, monkeypatch):
    bare = _save_run(tmp_path / "bare", Recipe(), monitors=False, grids=())
    drawn = _panels(monkeypatch, bare)
    assert set(drawn) == {"Losses", "Logits in the step", "Time"}
    read = _Reader((tmp_path / "not-drawn.html").read_text(encoding="utf-8"))
    text = " ".join(read.texts)
    assert [heading for heading in SECTIONS if heading != "Linear probe"] == read.headings[:-1]
    assert "No Fisher Similarity measured" in text
    assert "No agreement with people measured" in text
    assert "bare has no sample grids." in text

    full = _save_run(tmp_path / "full", Recipe())
    drawn = _panels(monkeypatch, bare, full)
    read = _Reader((tmp_path / "not-drawn.html").read_text(encoding="utf-8"))
    assert "Without logits: bare." in " ".join(read.texts)
    assert [panel.title for panel in drawn["Mean logit"]] == ["full"]


def test_a_run_at_its_start_and_one_whose_channels_live(tmp_path, monkeypatch):
    start = _save_run(tmp_path / "start", Recipe(), monitors=False)
    record = {name: 0 if "dead" in name else value for name, value in _monitors(0, False).items()}
    (start / "monitors.jsonl").write_text(json.dumps(record | {"generator_drift": 0.0}) + "\n")
    drawn = _panels(monkeypatch, start)
    assert "Generator and its average" not in drawn
    assert "Dead channels" not in drawn
    page = (tmp_path / "not-drawn.html").read_text(encoding="utf-8")
    assert "None is dead, at any time." in page


def test_a_run_that_was_killed_and_resumed(tmp_path, monkeypatch):
    run = _save_run(tmp_path / "run", Recipe(), monitors=False)
    lines = [(10, 1.0), (20, 2.0), (30, 3.0), (20, 5.0), (40, math.nan), (50, 6.0)]
    records = [json.dumps({"iteration": x, "seconds": x, "loss_d": y}) for x, y in lines]
    (run / "stats.jsonl").write_text("\n".join(records) + '\n{"iteration": 60, "lo')
    drawn = _panels(monkeypatch, run)
    assert drawn["Losses"][0].curves["run"] == [(10, 1.0), (20, 5.0), (50, 6.0)]


def test_a_broken_file_is_named(tmp_path):
    run = _save_run(tmp_path / "run", Recipe())
    (run / "stats.jsonl").write_text('{"iteration": 1}\nnonsense\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"stats\.jsonl, line 2 is no record"):
        write_report([run], tmp_path / "report.html")
    (run / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match=r"recipe\.json is not valid JSON"):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    runs = [_save_run(tmp_path / part / "run", Recipe()) for part in ("a", "b")]
    drawn = _panels(monkeypatch, *runs)
    assert list(drawn["Losses"][0].curves) == ["run (1)", "run (2)"]


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    run = _save_run(tmp_path / "run", Recipe(), monitors=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"afv-metric\[plots\]"):
        write_report([run], tmp_path / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_the_figures(page, tmp_path):
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,2500"]
    options += [f"--user-data-dir={tmp_path}", f"--screenshot={shot}", "--dump-dom", page.as_uri()]
    done = subprocess.run([str(CHROMIUM), *options], capture_output=True, timeout=120, check=True)
    shown = _Reader(done.stdout.decode())
    assert shown.headings == [*SECTIONS, "Recipes"]
    assert shown.tags.count("svg") == len(SECTIONS) - 2
    with Image.open(shot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert len(colours) > 50  # lines, and not a blank page
