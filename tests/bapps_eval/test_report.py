"""Tables, CSV, JSON and Markdown say what was measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bapps_eval.data import FAMILIES, JudgedSet, PairSet, SameSet, TripletSet
from bapps_eval.report import (
    Report,
    format_markdown,
    format_text,
    make_report,
    write_csv,
    write_json,
    write_markdown,
)
from bapps_eval.results import MetricRecord, Results
from bapps_eval.scores import ceiling, summarise

METRICS = ["l2", "afv/tiny/local", "afv-random/tiny/local"]


def triplets(name: str, count: int = 10, partial: str = "") -> TripletSet:
    judged = np.random.default_rng(count).integers(0, 6, count) / 5
    return TripletSet(name, Path("bapps"), [(Path("a.png"),) * 3] * count, judged, partial=partial)


def same(name: str, count: int = 10) -> SameSet:
    judged = np.random.default_rng(count).integers(0, 4, count) / 3
    return SameSet(name, Path("bapps"), [(Path("a.png"),) * 2] * count, judged)


def pairs(name: str, groups: int = 1) -> PairSet:
    judged = np.random.default_rng(groups).random(20)
    numbers = np.repeat(np.arange(groups), 20 // groups)
    return PairSet(name, Path("scores.csv"), [(Path("a.png"),) * 2] * 20, judged, numbers)


def make_results(sets: Sequence[JudgedSet], names: Sequence[str] = METRICS) -> Results:
    """Distances at random, of metrics of one bundle."""
    random = np.random.default_rng(5)
    metrics = [
        MetricRecord(name, "tiny", "0123456789abcdef0123", "local") if "/" in name else MetricRecord(name)
        for name in names
    ]
    distances = [[random.random((len(judged), len(judged.images[0]) - 1)) for judged in sets] for _ in names]
    return Results(list(sets), metrics, distances, {"limit": None, "root": ["bapps"]}, {"torch": "2.15"})


@pytest.fixture(scope="module")
def whole() -> Report:
    """All of BAPPS val, in no order, and two lists of pairs."""
    families = [triplets(f"2afc/{family}", 10 + index) for index, family in enumerate(FAMILIES[5::-1])]
    return make_report(
        make_results([*families, same("jnd/cnn"), same("jnd/traditional"), pairs("blur"), pairs("hue", 2)])
    )


def headings(report: Report) -> list[list[str]]:
    return [[column.heading for column in table.columns] for table in report.tables]


def test_columns_are_those_of_the_papers(whole: Report) -> None:
    assert headings(whole) == [
        ["traditional", "cnn", "distortion", "superres", "deblur", "color", "frameinterp", "real", "all"],
        ["traditional", "cnn", "all"],
        ["blur", "hue", "all"],
    ]
    columns = {column.name: column for table in whole.tables for column in table.columns}
    for rank in range(3):
        value = {name: column.scores[rank].value for name, column in columns.items()}
        distortion = (value["2afc/traditional"] + value["2afc/cnn"]) / 2
        assert value["2AFC distortion"] == pytest.approx(distortion)
        families = [value[f"2afc/{family}"] for family in FAMILIES[:6]]
        assert value["2AFC real"] == pytest.approx(np.mean(families[2:]))
        assert value["2AFC all"] == pytest.approx(np.mean(families))
        assert value["JND all"] == pytest.approx((value["jnd/cnn"] + value["jnd/traditional"]) / 2)
        singles = [column.scores[rank].value for column in columns.values() if column.measure != "mean"]
        assert len(singles) == 10
        assert whole.mean.scores[rank].value == pytest.approx(np.mean(singles))
    assert columns["2AFC real"].items == sum(columns[f"2afc/{family}"].items for family in FAMILIES[2:6])
    assert columns["2AFC all"].ceiling == pytest.approx(np.mean([columns[f"2afc/{f}"].ceiling for f in FAMILIES[:6]]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cnn"], ["cnn"]),
        (["cnn", "traditional"], ["traditional", "cnn", "distortion"]),
        (["material", "traditional", "cnn"], ["traditional", "cnn", "distortion", "material", "all"]),
        (["color", "cnn"], ["cnn", "color", "all"]),
    ],
)
def test_means_that_say_something_new(names: list[str], expected: list[str]) -> None:
    report = make_report(make_results([triplets(f"2afc/{name}") for name in names], ["l2"]))
    assert headings(report) == [expected]


def test_scores_are_those_of_the_summaries() -> None:
    results = make_results([triplets("2afc/cnn"), pairs("hue", 2)])
    report = make_report(results)
    summaries = summarise(results.sets, results.distances)
    column, further = (table.columns[0] for table in report.tables)
    for rank, summary in enumerate(summaries):
        score = column.scores[rank]
        assert (score.value, score.interval) == (summary.scores[0], summary.intervals[0])
        assert score.difference == pytest.approx(summary.scores[0] - summaries[0].scores[0])
        assert score.p_value == (summary.p_values[0] if rank else None)
        assert score.share == pytest.approx(score.value / ceiling(results.sets[0]))
        assert further.scores[rank].share is None
        assert further.scores[rank].secondary == summary.secondary[1]
        assert report.mean.scores[rank].difference_interval == summary.difference_interval


def test_text_fits_a_terminal_and_lines_up(whole: Report) -> None:
    text = format_text(whole)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    start = lines.index(next(line for line in lines if line.startswith("afv-random/local")))
    score = whole.tables[0].columns[1].scores[2]
    number, interval = f"{score.value:.3f}"[1:], [f"{value:.3f}" for value in score.interval]
    assert lines[start].split()[3:5] == [number, f"{score.share:.0%}"]
    assert lines[start + 1].split()[1] == "\N{EN DASH}".join(end.removeprefix("0") for end in interval)
    # The heading ends where the interval ends, and the score starts where it starts.
    at = lines[start + 1].index(lines[start + 1].split()[1])
    assert lines[start][at : at + len(number)] == number
    assert lines[1].index("cnn") + 3 == at + len(lines[start + 1].split()[1])
    assert "Bundle tiny: 0123456789abcdef." in lines


def test_columns_that_do_not_fit_follow_below() -> None:
    report = make_report(make_results([triplets(f"2afc/a rather long name {index}") for index in range(6)], ["l2"]))
    lines = format_text(report).splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines if line.startswith("items")] == ["items"] * 2
    assert sum("a rather long name" in line for line in lines) == 2


def test_names_stay_whole_if_there_are_two_bundles() -> None:
    results = make_results([triplets("2afc/cnn")], ["afv/tiny/local", "l2"])
    assert make_report(results).labels == ["afv/local", "l2"]
    other = MetricRecord("afv/large/local", "large", "ff", "local")
    results = replace(results, metrics=[*results.metrics, other], distances=[*results.distances, results.distances[0]])
    assert make_report(results).labels == ["afv/tiny/local", "l2", "afv/large/local"]


def test_one_metric_has_no_differences() -> None:
    text = format_text(make_report(make_results([triplets("2afc/cnn")], ["l2"])))
    assert "to l2" not in text
    assert "p:" not in text


def write_all(report: Report, folder: Path) -> dict[str, str]:
    write_csv(folder / "scores.csv", report)
    write_json(folder / "scores.json", report)
    write_markdown(folder / "scores.md", report)
    return {file.suffix: file.read_text() for file in folder.iterdir()} | {"text": format_text(report)}


def test_partial_sets_are_named_in_every_output(tmp_path: Path) -> None:
    sets = [triplets("2afc/traditional"), triplets("2afc/cnn", 12, "12 of 4,720 items"), pairs("blur")]
    outputs = write_all(make_report(make_results(sets)), tmp_path)
    assert set(outputs) == {".csv", ".json", ".md", "text"}
    for output in outputs.values():
        assert "12 of 4,720 items" in output
    head = outputs["text"].splitlines()[1].split()
    assert head == ["traditional", "cnn*", "distortion*"]
    assert "| traditional | cnn\\* | distortion\\* |" in outputs[".md"]
    assert "mean of 3 sets*" in outputs["text"]


def test_unfinished_runs_say_so(tmp_path: Path) -> None:
    results = replace(make_results([triplets("2afc/cnn")]), unfinished=["2afc/color", "blur"])
    outputs = write_all(make_report(results), tmp_path)
    for output in (outputs["text"], outputs[".md"]):
        assert "unfinished; still to measure: 2afc/color, blur." in output
    assert json.loads(outputs[".json"])["unfinished"] == ["2afc/color", "blur"]


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no set is finished"):
        make_report(Results([], [MetricRecord("l2")], [[]], unfinished=["2afc/cnn"]))


def test_csv_has_a_line_for_each_metric_set_and_measure(whole: Report, tmp_path: Path) -> None:
    write_csv(tmp_path / "new/scores.csv", whole)
    with (tmp_path / "new/scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    column = whole.tables[0].columns[1]
    line = next(line for line in lines if (line["metric"], line["set"]) == ("afv/tiny/local", "2afc/cnn"))
    score = column.scores[1]
    assert [float(line[key]) for key in ("score", "low", "high", "share", "difference", "p")] == [
        score.value,
        *score.interval,
        score.share,
        score.difference,
        score.p_value,
    ]
    assert (line["measure"], line["n"], line["partial"]) == ("2AFC", str(column.items), "")
    assert {line["measure"] for line in lines if line["set"] == "blur"} == {"SROCC", "KROCC", "PLCC"}
    kendall = [line for line in lines if (line["set"], line["measure"]) == ("blur", "KROCC")]
    assert float(kendall[1]["score"]) == whole.tables[2].columns[0].scores[1].secondary["KROCC"]
    assert float(kendall[1]["low"]) < float(kendall[1]["score"]) < float(kendall[1]["high"])
    mean = [line for line in lines if line["set"] == "mean of all"]
    assert [float(line["difference_low"]) for line in mean] == [
        score.difference_interval[0] for score in whole.mean.scores
    ]
    assert len({(line["metric"], line["set"], line["measure"]) for line in lines}) == len(lines)


def test_json_tells_where_the_numbers_come_from(whole: Report, tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", whole)
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["versions"] == {"torch": "2.15"}
    assert record["settings"] == {"limit": None, "root": ["bapps"], "seed": 0, "resamples": 1000}
    sets = {judged["name"]: judged for judged in record["sets"]}
    assert len(sets) == 10
    assert (sets["hue"]["items"], sets["hue"]["groups"], sets["hue"]["ceiling"]) == (20, 2, None)
    assert sets["2afc/cnn"]["ceiling"] == whole.tables[0].columns[1].ceiling
    local = record["metrics"][1]
    assert (local["name"], local["bundle"], local["form"]) == ("afv/tiny/local", "tiny", "local")
    assert local["bundle_hash"] == "0123456789abcdef0123"
    assert set(local["scores"]) == set(sets)
    score = whole.tables[0].columns[1].scores[1]
    assert local["scores"]["2afc/cnn"]["value"] == score.value
    assert local["scores"]["2afc/cnn"]["interval"] == list(score.interval)
    assert all(0 <= local["scores"][name]["value"] <= 1 for name in sets if sets[name]["measure"] == "2AFC")
    assert set(local["means"]) == {
        "2AFC distortion",
        "2AFC real",
        "2AFC all",
        "JND all",
        "judged pairs all",
        "mean of all",
    }
    assert local["means"]["mean of all"]["difference"] == whole.mean.scores[1].difference


def test_markdown_is_a_table_of_even_rows(whole: Report) -> None:
    text = format_markdown(whole)
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    score = whole.tables[0].columns[0].scores[0]
    low, high = (f"{value:.3f}".removeprefix("0") for value in score.interval)
    row = next(line for line in tables[0] if line.startswith("| l2 |"))
    value = f"{score.value:.3f}".removeprefix("0")
    assert row.split(" | ")[1] == f"{value} [{low}, {high}] {score.share:.0%}"


def test_markdown_escapes_names() -> None:
    report = make_report(make_results([pairs("a|b*c")], ["l2"]))
    assert "| a\\|b\\*c |" in format_markdown(report)


def test_a_failed_write_leaves_the_old_file(whole: Report, tmp_path: Path) -> None:
    file = tmp_path / "scores"
    file.write_text("old")
    broken = replace(whole, results=replace(whole.results, settings={"limit": float("nan")}))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, broken)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
