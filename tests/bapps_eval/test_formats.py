"""Tables, CSV, JSON and Markdown say what was measured."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from judged_reports import make_results, make_whole, pairs, triplets

from bapps_eval.formats import format_csv, format_json, format_markdown, format_text
from bapps_eval.report import Report, make_report


@pytest.fixture(scope="module")
def whole() -> Report:
    """See :func:`make_whole`."""
    return make_whole()


def test_text_fits_a_terminal_and_lines_up(whole: Report) -> None:
    lines = format_text(whole).splitlines()
    assert max(map(len, lines)) <= 120
    start = lines.index(next(line for line in lines if line.startswith("afv-random/local")))
    score = whole.tables[0].columns[1].scores[2]
    number, ends = f"{score.value:.3f}"[1:], [f"{value:.3f}".removeprefix("0") for value in score.interval]
    assert lines[start].split()[3:5] == [number, f"{score.share:.0%}"]
    interval = f"[{', '.join(ends)}]"
    assert re.findall(r"\[.*?\]", lines[start + 1])[1] == interval
    # Everything in a column ends where its heading ends.
    end = lines[1].index("cnn") + 3
    assert lines[start + 1].index(interval) + len(interval) == end
    assert lines[start][:end].endswith("%")
    assert "Bundle tiny: 0123456789abcdef." in lines


def test_json_tells_where_the_numbers_come_from(whole: Report) -> None:
    record = json.loads(format_json(whole))
    assert record["versions"] == {"torch": "2.15"}
    assert record["settings"] == {"limit": None, "root": ["bapps"], "resamples": 1000}
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
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    score = whole.tables[0].columns[0].scores[0]
    low, high = (f"{value:.3f}".removeprefix("0") for value in score.interval)
    row = next(line for line in tables[0] if line.startswith("| l2 "))
    value = f"{score.value:.3f}".removeprefix("0")
    assert row.split(" | ")[1].strip() == f"{value} [{low}, {high}] {score.share:.0%}"


def test_undefined_scores_are_a_dash_or_nothing_and_never_zero() -> None:
    report = make_report(make_results([triplets("2afc/mine"), replace(pairs("hue"), judged=np.ones(20))]))
    outputs = format_all(report)
    for output in (outputs["text"], outputs[".md"]):
        table = output[output.index("Judged pairs") :]
        assert ".000" not in table
        assert re.search(r"l2 [ |]+-", table)
    lines = [line for line in csv.DictReader(outputs[".csv"].splitlines()) if line["set"] == "hue"]
    assert {(line["score"], line["low"], line["p"]) for line in lines} == {("", "", "")}
    record = json.loads(outputs[".json"])
    assert record["metrics"][0]["scores"]["hue"]["value"] is None
    assert record["metrics"][0]["means"]["mean of all"]["value"] is None


def test_columns_that_do_not_fit_follow_below() -> None:
    report = make_report(make_results([triplets(f"2afc/a rather long name {index}") for index in range(6)], ["l2"]))
    lines = format_text(report).splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines if line.startswith("items")] == ["items"] * 2
    assert sum("a rather long name" in line for line in lines) == 2


def test_one_metric_has_no_differences() -> None:
    text = format_text(make_report(make_results([triplets("2afc/cnn")], ["l2"])))
    assert "to l2" not in text
    assert "p:" not in text


def format_all(report: Report) -> dict[str, str]:
    formats = {".csv": format_csv, ".json": format_json, ".md": format_markdown, "text": format_text}
    return {name: format_report(report) for name, format_report in formats.items()}


def test_partial_sets_are_named_in_every_output() -> None:
    sets = [triplets("2afc/traditional"), triplets("2afc/cnn", 12, "12 of 4,720 items"), pairs("blur")]
    outputs = format_all(make_report(make_results(sets)))
    assert set(outputs) == {".csv", ".json", ".md", "text"}
    for output in outputs.values():
        assert "12 of 4,720 items" in output
    head = outputs["text"].splitlines()[1].split()
    assert head == ["traditional", "cnn*", "distortion*"]
    assert re.search(r"\| +traditional \| +cnn\\\* \| +distortion\\\* \|", outputs[".md"])
    assert "mean of 3 sets*" in outputs["text"]


def test_csv_has_a_line_for_each_metric_set_and_measure(whole: Report) -> None:
    lines = list(csv.DictReader(format_csv(whole).splitlines()))
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
    assert {line["measure"] for line in lines if line["set"] == "blur"} == {"SROCC"}
    mean = [line for line in lines if line["set"] == "mean of all"]
    assert [float(line["difference_low"]) for line in mean] == [
        score.difference_interval[0] for score in whole.mean.scores
    ]
    assert len({(line["metric"], line["set"]) for line in lines}) == len(lines)


def test_markdown_escapes_names() -> None:
    report = make_report(make_results([pairs("a|b*c")], ["l2"]))
    assert re.search(r"\| +a\\\|b\\\*c \|", format_markdown(report))
