"""The scores of a run in the tables of the papers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from judged_reports import make_results, make_whole, pairs, triplets

from bapps_eval.data import FAMILIES
from bapps_eval.report import Report, make_report
from bapps_eval.results import Measured, MetricRecord, plan_results
from bapps_eval.scores import ceiling, p_value, score_set


@pytest.fixture(scope="module")
def whole() -> Report:
    """See :func:`make_whole`."""
    return make_whole()


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


def test_scores_are_those_of_the_sets() -> None:
    results = make_results([triplets("2afc/cnn"), pairs("hue", 2)])
    report = make_report(results)
    samples = [score_set(judged, of) for judged, of in zip(results.sets, results.distances, strict=True)]
    column, further = (table.columns[0] for table in report.tables)
    main, less = samples[0], samples[0].differences
    for rank in range(3):
        score = column.scores[rank]
        assert (score.value, score.interval) == (main.values[rank], main.intervals[rank])
        assert (score.difference, score.difference_interval) == (less.values[rank], less.intervals[rank])
        assert score.p_value == (p_value(score.difference, less.drawn[rank]) if rank else None)
        assert score.share == pytest.approx(score.value / ceiling(results.sets[0]))
        assert further.scores[rank].share is None
        assert further.scores[rank].value == samples[1].values[rank]


def test_intervals_do_not_depend_on_the_order_of_sets() -> None:
    sets = [triplets("2afc/mine"), pairs("hue"), pairs("blur"), triplets("2afc/own", 12)]
    results = make_results(sets)
    turned = replace(results, sets=sets[::-1], distances=results.distances[::-1], failures=results.failures[::-1])
    one, other = make_report(results), make_report(turned)
    by_name = {column.name: column.scores for column in other.columns}
    assert all(by_name[column.name] == column.scores for column in one.columns if column.measure != "mean")
    assert [score.interval for score in one.mean.scores] == [
        pytest.approx(score.interval) for score in other.mean.scores
    ]


def test_failed_items_make_a_set_partial() -> None:
    results = make_results([triplets("2afc/mine"), pairs("hue")])
    results.distances[0][:, 3] = np.nan
    results.add(0, Measured(3, [], "broken"))
    report = make_report(results)
    assert report.mean.partial == ("2afc/mine: 9 of 10 items",)
    assert headings(report)[0] == ["mine*"]


def test_unfinished_sets_are_left_out_and_named() -> None:
    results = make_results([triplets("2afc/mine"), pairs("hue")])
    results.distances[1][:, 3] = np.nan
    report = make_report(results)
    assert report.unfinished == ("hue",)
    assert "The run is unfinished; still to measure: hue." in report.notes
    assert headings(report) == [["mine"]]


def test_undefined_scores_are_said_to_be() -> None:
    results = make_results([triplets("2afc/mine"), replace(pairs("hue"), judged=np.ones(20))])
    report = make_report(results)
    assert all(np.isnan(score.value) for score in report.tables[1].columns[0].scores)
    assert all(np.isnan(score.value) for score in report.mean.scores)
    assert "-: undefined, as all judgements or all distances are equal." in report.notes
    assert not any("undefined" in note for note in make_report(make_results([pairs("hue")])).notes)


def test_names_stay_whole_if_there_are_two_bundles() -> None:
    results = make_results([triplets("2afc/cnn")], ["afv/tiny/local", "l2"])
    assert make_report(results).labels == ["afv/local", "l2"]
    other = MetricRecord("afv/large/local", "large", "ff", "local")
    results = plan_results(results.sets, [*results.metrics, other])
    results.distances[0][:] = 1
    assert make_report(results).labels == ["afv/tiny/local", "l2", "afv/large/local"]


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no set is finished"):
        make_report(plan_results([triplets("2afc/cnn")], [MetricRecord("l2")]))
