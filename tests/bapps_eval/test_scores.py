"""Scores against values worked out by hand, against scipy and against lpips; the bootstrap against theory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from bapps_eval import scores
from bapps_eval.data import JudgedSet, PairSet, SameSet, TripletSet
from bapps_eval.scores import (
    SEED,
    Comparison,
    agreement,
    average_precision,
    bootstrap,
    ceiling,
    kendall_correlation,
    linear_correlation,
    p_value,
    rank_correlation,
    score,
    summarise,
)

HERE = Path()
CORRELATIONS = {
    rank_correlation: stats.spearmanr,
    kendall_correlation: stats.kendalltau,
    linear_correlation: stats.pearsonr,
}


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


def _triplets(preferred: list[float] | np.ndarray) -> TripletSet:
    return TripletSet("triplets", HERE, [(HERE,) * 3] * len(preferred), np.array(preferred, float))


def _same(same: list[float] | np.ndarray) -> SameSet:
    return SameSet("same", HERE, [(HERE,) * 2] * len(same), np.array(same, float))


def _pairs(judged: list[float] | np.ndarray, groups: list[int] | None = None) -> PairSet:
    numbers = np.array(groups or [0] * len(judged))
    return PairSet("pairs", HERE, [(HERE,) * 2] * len(judged), np.array(judged, float), numbers)


def _primary(judged: JudgedSet, distances: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    return score(judged, distances, counts)[judged.measure]


def _column(values: list[float] | np.ndarray) -> np.ndarray:
    return np.array(values, float)[:, None]


def test_agreement_sides_with_those_who_agree() -> None:
    first, second = np.array([2.0, 1.0, 3.0]), np.array([1.0, 2.0, 3.0])
    assert agreement(first, second, np.array([0.9, 0.9, 0.9])).tolist() == pytest.approx([0.9, 0.1, 0.5])


def test_average_precision_by_hand() -> None:
    # Hits at ranks 1, 3 and 4: precisions 1, 2/3 and 3/4; the envelope lifts the second to 3/4.
    precision = average_precision(np.array([0.3, 0.1, 0.2, 0.4]), np.array([1.0, 1.0, 0.0, 1.0]))
    assert precision == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)


def test_average_precision_of_perfect_and_reversed_order() -> None:
    same = np.array([1.0, 1.0, 0.0, 0.0])
    assert average_precision(np.arange(4.0), same) == 1
    assert average_precision(-np.arange(4.0), same) == pytest.approx(0.5)


def test_average_precision_of_ties_does_not_depend_on_order() -> None:
    # Both of the tied pairs, of which one is a hit, come at once: precision 2/3 at recall 1.
    distances = np.array([0.1, 0.2, 0.2])
    assert average_precision(distances, np.array([1.0, 1.0, 0.0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(distances, np.array([1.0, 0.0, 1.0])) == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_when_nobody_said_same() -> None:
    assert average_precision(np.arange(3.0), np.zeros(3)) == 0


def _official(name: str, data: dict[str, np.ndarray]) -> float:
    """What the scorer of the lpips package gives for distances that stand where the images belong."""
    trainer = pytest.importorskip("lpips.trainer")

    class Loader:
        def load_data(self) -> list[dict[str, torch.Tensor]]:
            # Two batches, the second smaller, as a loader gives them.
            tensors = {key: torch.from_numpy(values) for key, values in data.items()}
            return [{key: values[part] for key, values in tensors.items()} for part in (slice(0, 40), slice(40, None))]

    return float(getattr(trainer, name)(Loader(), lambda first, second: second)[0])


@pytest.mark.parametrize("seed", range(5))
def test_two_alternatives_equal_lpips(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that there are ties, which both count half.
    distances, preferred = rng.integers(0, 5, (70, 2)).astype(np.float32), rng.integers(0, 6, 70) / 5
    data = {"ref": distances[:, 0], "p0": distances[:, 0], "p1": distances[:, 1], "judge": preferred}
    assert (distances[:, 0] == distances[:, 1]).any()
    expected = _official("score_2afc_dataset", data)
    assert _primary(_triplets(preferred), distances.astype(float)) == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_lpips(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances, same = rng.random(70).astype(np.float32), rng.integers(0, 4, 70) / 3
    expected = _official("score_jnd_dataset", {"p0": distances, "p1": distances, "same": same})
    assert _primary(_same(same), _column(distances)) == pytest.approx(expected, rel=0, abs=1e-9)


def test_average_precision_of_ties_lies_within_what_lpips_may_give(rng: np.random.Generator) -> None:
    # LPIPS takes tied pairs in whatever order; hits first is the best that can come out, hits last the worst.
    distances, same = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    best, worst = (average_precision(distances + sign * 1e-6 * same, same) for sign in (-1, 1))
    assert worst - 1e-9 <= average_precision(distances, same) < best
    official = _official("score_jnd_dataset", {"p0": distances, "p1": distances, "same": same})
    assert worst - 1e-9 <= official <= best + 1e-9


@pytest.mark.parametrize("levels", [1000, 5], ids=["few ties", "many ties"])
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_correlations_equal_scipy(correlation: Comparison, levels: int, rng: np.random.Generator) -> None:
    for size in (2, 3, 40):
        distances, judged = rng.integers(0, levels, size).astype(float), rng.integers(0, 2 * levels, size) / 7
        judged[0], judged[-1], distances[0], distances[-1] = 0, 1, 2, 1
        expected = CORRELATIONS[correlation](distances, judged).statistic
        assert correlation(distances, judged) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_correlations_of_counts_equal_those_of_repeated_items(
    correlation: Comparison, rng: np.random.Generator
) -> None:
    distances, judged = rng.integers(0, 9, 30).astype(float), rng.random(30)
    counts = rng.integers(0, 4, (6, 30)).astype(float)
    expected = [
        CORRELATIONS[correlation](np.repeat(distances, row), np.repeat(judged, row)).statistic
        for row in counts.astype(int)
    ]
    assert correlation(distances, judged, counts).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize("value", [1.0, 0.1, 1e9 / 3])
def test_correlations_of_a_constant(correlation: Comparison, value: float) -> None:
    rising, constant, counts = np.arange(7.0), np.full(7, value), np.array([[1.0] * 7, [3, 0, 1, 0, 2, 1, 0]])
    assert correlation(constant, rising, counts).tolist() == [0, 0]
    assert correlation(rising, constant, counts).tolist() == [0, 0]
    assert correlation(rising, rising, np.array([0, 0, 7.0, 0, 0, 0, 0])) == 0


def test_linear_correlation_of_large_numbers_that_differ_little() -> None:
    rising = 1e6 + 1e-3 * np.arange(5)
    assert linear_correlation(rising, np.arange(5.0)) == pytest.approx(1, abs=1e-6)


def test_kendall_correlation_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    distances, judged = rng.random((2, 50))
    whole = kendall_correlation(distances, judged)
    monkeypatch.setattr(scores, "_BLOCK", 120)
    assert kendall_correlation(distances, judged) == whole


def test_average_precision_of_counts_equals_that_of_repeated_pairs(rng: np.random.Generator) -> None:
    distances, same = rng.integers(0, 12, 30).astype(float), rng.integers(0, 4, 30) / 3
    counts = rng.integers(0, 3, (8, 30))
    counts[0, np.argsort(distances)[:20]] = 0  # none of the nearest
    expected = [float(average_precision(np.repeat(distances, row), np.repeat(same, row))) for row in counts]
    assert average_precision(distances, same, counts.astype(float)).tolist() == pytest.approx(expected, abs=1e-12)


def test_score_of_pairs_is_within_groups() -> None:
    judged, distances = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], _column([11, 12, 13, 3, 2, 1])
    assert _primary(_pairs(judged, [0, 0, 0, 1, 1, 1]), distances) == pytest.approx((1 - 1) / 2)
    assert _primary(_pairs(judged, [0, 0, 1, 1, 0, 1]), distances) == pytest.approx((-0.5 + 0.5) / 2)
    assert _primary(_pairs(judged), distances) == pytest.approx(stats.spearmanr(judged, distances[:, 0]).statistic)


def test_further_scores_of_pairs(rng: np.random.Generator) -> None:
    people, distances = rng.random(24), rng.random((24, 1))
    of_all = {
        name: function(distances[:, 0], people).statistic
        for name, function in zip(("SROCC", "KROCC", "PLCC"), CORRELATIONS.values(), strict=True)
    }
    assert score(_pairs(people), distances) == {name: pytest.approx(value) for name, value in of_all.items()}
    groups = np.repeat([0, 1], [10, 14])
    within = {
        name: np.mean([function(distances[groups == g, 0], people[groups == g]).statistic for g in (0, 1)])
        for name, function in zip(("SROCC in groups", "KROCC", "PLCC"), CORRELATIONS.values(), strict=True)
    }
    expected = within | {f"{name} overall": value for name, value in of_all.items()}
    found = score(_pairs(people, list(groups)), distances)
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert next(iter(found)) == "SROCC in groups"


def test_ceiling_is_the_agreement_of_one_with_the_panel() -> None:
    assert ceiling(_triplets([1.0, 0.0])) == 1
    assert ceiling(_triplets([0.5, 0.8])) == pytest.approx((0.5 + 0.68) / 2)
    assert ceiling(_pairs([1.0, 2.0])) is None


def _panels(votes: int, rng: np.random.Generator) -> np.ndarray:
    """Votes for one of two things that all people favour to different degrees: ``(items, votes + 1)``."""
    return rng.random((60_000, votes + 1)) < rng.random((60_000, 1))


def test_ceiling_of_triplets_is_too_high_and_with_votes_is_not(rng: np.random.Generator) -> None:
    # Somebody who was not asked, against the panel of five.
    panel = _panels(5, rng)
    fractions = panel[:, 1:].mean(1)
    stranger = np.where(panel[:, 0], fractions, 1 - fractions).mean()
    judged = _triplets(fractions)
    assert ceiling(judged, votes=5) == pytest.approx(stranger, abs=0.005)
    # Fractions are uniform, so 2 q (1 - q) / 5 is 2 / 6 / 5 on average.
    assert ceiling(judged) == pytest.approx(stranger + 2 / 6 / 5, abs=0.005)


def test_ceiling_of_same_or_not_is_the_average_precision_of_one(rng: np.random.Generator) -> None:
    panel = _panels(3, rng)
    fractions = panel[:, 1:].mean(1)
    # Somebody who was not asked says "same", and that pair is at distance 0, or does not.
    stranger = average_precision(1.0 - panel[:, 0], fractions)
    assert ceiling(_same(fractions), votes=3) == pytest.approx(float(stranger), abs=0.005)
    one_of_the_panel = average_precision(1.0 - panel[:, 1], fractions)
    assert ceiling(_same(fractions)) == pytest.approx(float(one_of_the_panel), abs=0.005)
    assert ceiling(_same([0.0, 0.0])) is None


def test_ceiling_with_a_wrong_number_of_votes() -> None:
    judged = _triplets([np.float32(0.2), np.float32(0.6)])
    assert ceiling(judged, votes=5) == pytest.approx((0.6 + 0.4) / 2)
    with pytest.raises(ValueError, match="triplets has fractions that are not of 4 votes"):
        ceiling(judged, votes=4)
    with pytest.raises(ValueError, match="at least 2 votes, not 1"):
        ceiling(judged, votes=1)


def test_score_of_counts_is_that_of_each(rng: np.random.Generator) -> None:
    counts = rng.multinomial(12, [1 / 12] * 12, size=6).astype(float)
    for judged in (_triplets(rng.random(12)), _same(rng.random(12)), _pairs(rng.random(12), [0, 1] * 6)):
        distances = rng.random((12, 2))
        together = score(judged, distances, counts)
        assert judged.measure in together
        for name, values in together.items():
            one_by_one = [float(score(judged, distances, row)[name]) for row in counts]
            assert values.tolist() == pytest.approx(one_by_one)
            assert len(set(one_by_one)) == 6


def test_bootstrap_is_seeded(rng: np.random.Generator) -> None:
    judged, distances = _triplets(rng.random(30)), [rng.random((30, 2))]
    first = bootstrap(judged, distances, resamples=50)["2AFC"]
    assert first.shape == (1, 50)
    assert np.array_equal(first, bootstrap(judged, distances, resamples=50)["2AFC"])
    assert not np.array_equal(first, bootstrap(judged, distances, resamples=50, seed=1)["2AFC"])


def test_bootstrap_draws_items_with_replacement(rng: np.random.Generator) -> None:
    judged, distances = _triplets(rng.random(30)), rng.random((30, 2))
    rows = np.random.default_rng(7).integers(30, size=(50, 30))
    sides = agreement(distances[:, 0], distances[:, 1], judged.judged)
    expected = sides[rows].mean(1)
    assert bootstrap(judged, [distances], resamples=50, seed=7)["2AFC"][0] == pytest.approx(expected)


def test_bootstrap_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    for judged in (_triplets(rng.random(30)), _pairs(rng.random(30))):
        distances = [rng.random((30, 2))]
        whole = bootstrap(judged, distances, resamples=50)
        with monkeypatch.context() as patch:
            patch.setattr(scores, "_BLOCK", 100)
            parts = bootstrap(judged, distances, resamples=50)
        assert parts.keys() == whole.keys() >= {judged.measure}
        for name, values in parts.items():
            assert values == pytest.approx(whole[name], abs=1e-12)


def test_bootstrap_of_kendall_stops_early_on_large_sets(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, distances = _pairs(rng.random(30)), [rng.random((30, 1)), rng.random((30, 1))]
    whole = bootstrap(judged, distances, resamples=300)
    assert whole["KROCC"].shape == (2, 300)
    monkeypatch.setattr(scores, "_PAIRS", 150 * 30**2)
    monkeypatch.setattr(scores, "_BLOCK", 2000)
    limited = bootstrap(judged, distances, resamples=300)
    assert {name: values.shape for name, values in limited.items()} == {
        "SROCC": (2, 300),
        "KROCC": (2, 150),
        "PLCC": (2, 300),
    }
    assert limited["KROCC"] == pytest.approx(whole["KROCC"][:, :150])
    monkeypatch.setattr(scores, "_PAIRS", 0)
    assert bootstrap(judged, distances, resamples=300)["KROCC"].shape == (2, 100)
    assert bootstrap(judged, distances, resamples=60)["KROCC"].shape == (2, 60)


def test_bootstrap_spreads_as_theory_says(rng: np.random.Generator) -> None:
    preferred, distances = rng.random(400), rng.random((400, 2))
    drawn = bootstrap(_triplets(preferred), [distances], resamples=4000)["2AFC"][0]
    sides = agreement(distances[:, 0], distances[:, 1], preferred)
    assert drawn.mean() == pytest.approx(sides.mean(), abs=4 * sides.std() / 20 / 4000**0.5)
    assert drawn.std() == pytest.approx(sides.std() / 20, rel=0.05)


def test_bootstrap_draws_within_groups() -> None:
    # The correlation is 1 in one group and -1 in the other: only draws within groups keep every mean at 0.
    judged = _pairs([*range(10), *range(10)], [0] * 10 + [1] * 10)
    drawn = bootstrap(judged, [_column([*range(10), *range(10, 0, -1)])], resamples=50)[judged.measure]
    assert drawn == pytest.approx(np.zeros((1, 50)))


def test_bootstrap_draws_every_group(rng: np.random.Generator) -> None:
    judged, distances = _pairs(rng.random(20), [0] * 8 + [1] * 12), rng.random(20)
    generator = np.random.default_rng(7)
    rows = [start + generator.integers(size, size=(30, size)) for start, size in ((0, 8), (8, 12))]
    expected = [
        np.mean([stats.spearmanr(distances[part[draw]], judged.judged[part[draw]]).statistic for part in rows])
        for draw in range(30)
    ]
    drawn = bootstrap(judged, [_column(distances)], resamples=30, seed=7)[judged.measure]
    assert drawn[0].tolist() == pytest.approx(expected)


def test_p_value_by_hand() -> None:
    drawn = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    # As far from 0.2 as that is from 0: 0, 0.4 and 0.5.
    assert p_value(0.2, drawn) == pytest.approx(4 / 7)
    assert p_value(-0.2, -drawn) == pytest.approx(4 / 7)
    assert p_value(0.2, np.full(99, 0.2)) == 1 / 100
    assert p_value(0.0, np.zeros(99)) == 1


def test_p_values_are_uniform_where_metrics_are_equally_good(rng: np.random.Generator) -> None:
    # Coins against coins: about one in ten differences is as unlikely as p < 0.1 says.
    found = []
    for seed in range(300):
        preferred, distances = rng.integers(0, 2, 100).astype(float), rng.random((2, 100, 2))
        drawn = bootstrap(_triplets(preferred), list(distances), resamples=200, seed=seed)["2AFC"]
        one, other = (float(_primary(_triplets(preferred), of_metric)) for of_metric in distances)
        found.append(p_value(other - one, drawn[1] - drawn[0]))
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.1)


def test_summaries(rng: np.random.Generator) -> None:
    preferred = rng.integers(0, 2, 300).astype(float)
    perfect = np.stack([preferred, 1 - preferred], 1)
    guess = rng.random((300, 2))
    sets = [_triplets(preferred), _triplets(preferred[:200])]
    right, random, same = summarise(sets, [[perfect, perfect[:200]], [guess, guess[:200]], [perfect, perfect[:200]]])
    assert (right.scores, right.mean, right.interval) == ((1, 1), 1, (1, 1))
    assert (right.difference, right.difference_interval, right.p_value, right.p_values) == (0, (0, 0), 1, (1, 1))
    assert same == right
    assert random.mean == pytest.approx(sum(random.scores) / 2)
    assert random.interval[0] < random.mean < random.interval[1]
    assert random.difference == pytest.approx(random.mean - 1)
    assert random.difference_interval == pytest.approx([bound - 1 for bound in random.interval])
    assert (random.p_value, random.p_values) == (1 / 1001, (1 / 1001, 1 / 1001))
    assert random.secondary == ({}, {})


def test_summaries_of_each_set(rng: np.random.Generator) -> None:
    # Of different kinds and sizes, with every score in its place and an interval of its own.
    sets = [
        _triplets(rng.random(60)),
        _same(rng.random(50)),
        _pairs(rng.random(40)),
        _pairs(rng.random(24), [0, 1] * 12),
    ]
    distances = [[rng.random((len(judged), 2)) for judged in sets] for _ in range(2)]
    summaries = summarise(sets, distances)
    assert len(summaries) == 2
    for metric, summary in enumerate(summaries):
        for index, judged in enumerate(sets):
            expected = {name: float(value) for name, value in score(judged, distances[metric][index]).items()}
            drawn = bootstrap(judged, [column[index] for column in distances], seed=[SEED, index])
            ends = {name: tuple(np.percentile(values[metric], (2.5, 97.5))) for name, values in drawn.items()}
            assert summary.scores[index] == expected.pop(judged.measure)
            assert summary.intervals[index] == ends.pop(judged.measure)
            assert summary.secondary[index] == expected
            assert summary.secondary_intervals[index] == ends
            differences = drawn[judged.measure][metric] - drawn[judged.measure][0]
            difference = score(judged, distances[metric][index])[judged.measure]
            difference = difference - score(judged, distances[0][index])[judged.measure]
            assert summary.p_values[index] == p_value(float(difference), differences)


def test_intervals_are_of_95_percent(rng: np.random.Generator) -> None:
    preferred, distances = rng.random(400), rng.random((400, 2))
    (summary,) = summarise([_triplets(preferred)], [[distances]])
    error = agreement(distances[:, 0], distances[:, 1], preferred).std() / 20
    expected = [summary.mean - 1.96 * error, summary.mean + 1.96 * error]
    assert summary.interval == pytest.approx(expected, abs=0.25 * error)
    assert summary.intervals == (summary.interval,)


def test_differences_are_paired(rng: np.random.Generator) -> None:
    # The metrics differ in one triplet of 200, so their difference is far surer than either.
    preferred, distances = rng.integers(0, 2, 200).astype(float), rng.random((200, 2))
    other = distances.copy()
    other[0] = other[0, ::-1]
    first, second = summarise([_triplets(preferred)], [[distances], [other]])
    width = second.difference_interval[1] - second.difference_interval[0]
    assert abs(second.difference) == pytest.approx(1 / 200)
    assert width < 0.25 * (first.interval[1] - first.interval[0])
    # One item that is drawn k times, k Poisson of mean 1, is as far from 1 as 1 is from 0 unless k = 1.
    assert second.p_value == pytest.approx(1 - np.exp(-1), abs=0.05)


def test_a_thousand_resamples_of_bapps_take_seconds(rng: np.random.Generator) -> None:
    # A twentieth of BAPPS and a fifth of the resamples: without sorting anew this takes a few hundredths of a second.
    sets = [_triplets(rng.random(1800)), _same(rng.random(480))]
    distances = [[rng.random((len(judged), 2)) for judged in sets] for _ in range(8)]
    start = time.process_time()
    for index, judged in enumerate(sets):
        bootstrap(judged, [column[index] for column in distances], resamples=200)
    assert time.process_time() - start < 1
