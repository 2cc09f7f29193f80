"""Scores against values worked out by hand, against scipy and against lpips; the bootstrap against theory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from bapps_eval import scores
from bapps_eval.data import JudgedSet
from bapps_eval.scores import (
    Sample,
    agreement,
    average_precision,
    ceiling,
    interval,
    p_value,
    rank_correlation,
    score,
    score_set,
)

HERE = Path()


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


def _triplets(preferred: list[float] | np.ndarray) -> JudgedSet:
    return JudgedSet("triplets", "triplets", HERE, [(HERE,) * 3] * len(preferred), np.array(preferred, float))


def _same(same: list[float] | np.ndarray) -> JudgedSet:
    return JudgedSet("same", "same", HERE, [(HERE,) * 2] * len(same), np.array(same, float))


def _pairs(judged: list[float] | np.ndarray, groups: list[int] | None = None) -> JudgedSet:
    numbers = np.array(groups or [0] * len(judged))
    return JudgedSet("pairs", "pairs", HERE, [(HERE,) * 2] * len(judged), np.array(judged, float), numbers)


def _column(values: list[float] | np.ndarray) -> np.ndarray:
    return np.array(values, float)[:, None]


def bootstrap(judged: JudgedSet, distances: Sequence[np.ndarray], resamples: int = 1000) -> np.ndarray:
    """The resampled scores alone."""
    return score_set(judged, np.array(distances), resamples).drawn


def generator_of(name: str) -> np.random.Generator:
    """The random numbers of a set."""
    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:32], 16))


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
    assert np.isnan(average_precision(np.arange(3.0), np.zeros(3)))


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
    assert score(_triplets(preferred), distances.astype(float)) == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_lpips(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances, same = rng.random(70).astype(np.float32), rng.integers(0, 4, 70) / 3
    expected = _official("score_jnd_dataset", {"p0": distances, "p1": distances, "same": same})
    assert score(_same(same), _column(distances)) == pytest.approx(expected, rel=0, abs=1e-9)


def test_average_precision_of_ties_lies_within_what_lpips_may_give(rng: np.random.Generator) -> None:
    # LPIPS takes tied pairs in whatever order; hits first is the best that can come out, hits last the worst.
    distances, same = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    best, worst = (average_precision(distances + sign * 1e-6 * same, same) for sign in (-1, 1))
    assert worst - 1e-9 <= average_precision(distances, same) < best
    order = rng.permutation(60)
    assert average_precision(distances[order], same[order]) == pytest.approx(average_precision(distances, same))
    official = _official("score_jnd_dataset", {"p0": distances, "p1": distances, "same": same})
    assert worst - 1e-9 <= official <= best + 1e-9


@pytest.mark.parametrize("levels", [1000, 5], ids=["few ties", "many ties"])
def test_rank_correlation_equals_scipy(levels: int, rng: np.random.Generator) -> None:
    for size in (2, 3, 40):
        distances, judged = rng.integers(0, levels, size).astype(float), rng.integers(0, 2 * levels, size) / 7
        judged[0], judged[-1], distances[0], distances[-1] = 0, 1, 2, 1
        expected = stats.spearmanr(distances, judged).statistic
        assert rank_correlation(distances, judged) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_of_counts_equals_that_of_repeated_items(rng: np.random.Generator) -> None:
    distances, judged = rng.integers(0, 9, 30).astype(float), rng.random(30)
    counts = rng.integers(0, 4, (6, 30)).astype(float)
    expected = [
        stats.spearmanr(np.repeat(distances, row), np.repeat(judged, row)).statistic for row in counts.astype(int)
    ]
    assert rank_correlation(distances, judged, counts).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [1.0, 0.1, 1e9 / 3])
def test_rank_correlation_of_a_constant_is_undefined(value: float) -> None:
    rising, constant, counts = np.arange(7.0), np.full(7, value), np.array([[1.0] * 7, [3, 0, 1, 0, 2, 1, 0]])
    assert np.isnan(rank_correlation(constant, rising, counts)).all()
    assert np.isnan(rank_correlation(rising, constant, counts)).all()
    assert np.isnan(rank_correlation(rising, rising, np.array([0, 0, 7.0, 0, 0, 0, 0])))


def test_average_precision_of_counts_equals_that_of_repeated_pairs(rng: np.random.Generator) -> None:
    distances, same = rng.integers(0, 12, 30).astype(float), rng.integers(0, 4, 30) / 3
    counts = rng.integers(0, 3, (8, 30))
    counts[0, np.argsort(distances)[:20]] = 0  # none of the nearest
    expected = [float(average_precision(np.repeat(distances, row), np.repeat(same, row))) for row in counts]
    assert average_precision(distances, same, counts.astype(float)).tolist() == pytest.approx(expected, abs=1e-12)


def test_score_of_pairs_is_within_groups() -> None:
    judged, distances = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], _column([11, 12, 13, 3, 2, 1])
    assert score(_pairs(judged, [0, 0, 0, 1, 1, 1]), distances) == pytest.approx((1 - 1) / 2)
    assert score(_pairs(judged, [0, 0, 1, 1, 0, 1]), distances) == pytest.approx((-0.5 + 0.5) / 2)
    assert score(_pairs(judged), distances) == pytest.approx(stats.spearmanr(judged, distances[:, 0]).statistic)


def test_ceiling_is_the_agreement_of_one_with_the_panel() -> None:
    assert ceiling(_triplets([1.0, 0.0])) == 1
    assert ceiling(_triplets([0.5, 0.8])) == pytest.approx((0.5 + 0.68) / 2)
    assert ceiling(_pairs([1.0, 2.0])) is None


def _panels(votes: int, rng: np.random.Generator) -> np.ndarray:
    """Votes for one of two things that all people favour to different degrees: ``(items, votes + 1)``."""
    return rng.random((60_000, votes + 1)) < rng.random((60_000, 1))


def test_ceiling_is_what_one_of_the_panel_scores(rng: np.random.Generator) -> None:
    panel = _panels(5, rng)
    fractions = panel[:, 1:].mean(1)
    one_of_the_panel = np.where(panel[:, 1], fractions, 1 - fractions).mean()
    assert ceiling(_triplets(fractions)) == pytest.approx(one_of_the_panel, abs=0.005)
    # Somebody who was not asked scores less: fractions are uniform, so 2 q (1 - q) / 5 is 2 / 6 / 5 on average.
    stranger = np.where(panel[:, 0], fractions, 1 - fractions).mean()
    assert ceiling(_triplets(fractions)) == pytest.approx(stranger + 2 / 6 / 5, abs=0.005)


def test_ceiling_of_same_or_not_is_the_average_precision_of_one(rng: np.random.Generator) -> None:
    panel = _panels(3, rng)
    fractions = panel[:, 1:].mean(1)
    # One of the panel says "same", and that pair is at distance 0, or does not.
    one_of_the_panel = average_precision(1.0 - panel[:, 1], fractions)
    assert ceiling(_same(fractions)) == pytest.approx(float(one_of_the_panel), abs=0.005)
    assert ceiling(_same([0.0, 0.0])) is None


def test_score_of_counts_is_that_of_each(rng: np.random.Generator) -> None:
    counts = rng.multinomial(12, [1 / 12] * 12, size=6).astype(float)
    for judged in (_triplets(rng.random(12)), _same(rng.random(12)), _pairs(rng.random(12), [0, 1] * 6)):
        distances = rng.random((12, 2))
        one_by_one = [float(score(judged, distances, row)) for row in counts]
        assert score(judged, distances, counts).tolist() == pytest.approx(one_by_one)
        assert len(set(one_by_one)) == 6


def test_intervals_of_a_set_depend_on_its_name_alone(rng: np.random.Generator) -> None:
    judged, distances = _triplets(rng.random(30)), [rng.random((30, 2))]
    first = bootstrap(judged, distances, resamples=50)
    assert first.shape == (1, 50)
    assert np.array_equal(first, bootstrap(judged, distances, resamples=50))
    other = bootstrap(replace(judged, name="other"), distances, resamples=50)
    assert not np.array_equal(first, other)


def test_bootstrap_draws_items_with_replacement(rng: np.random.Generator) -> None:
    judged, distances = _triplets(rng.random(30)), rng.random((30, 2))
    rows = generator_of("triplets").integers(30, size=(50, 30))
    sides = agreement(distances[:, 0], distances[:, 1], judged.judged)
    expected = sides[rows].mean(1)
    assert bootstrap(judged, [distances], resamples=50)[0] == pytest.approx(expected)


def test_bootstrap_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    for judged in (_triplets(rng.random(30)), _pairs(rng.random(30))):
        distances = [rng.random((30, 2))]
        whole = bootstrap(judged, distances, resamples=50)
        with monkeypatch.context() as patch:
            patch.setattr(scores, "_BLOCK", 100)
            assert bootstrap(judged, distances, resamples=50) == pytest.approx(whole, abs=1e-12)


def test_bootstrap_spreads_as_theory_says(rng: np.random.Generator) -> None:
    preferred, distances = rng.random(400), rng.random((400, 2))
    drawn = bootstrap(_triplets(preferred), [distances], resamples=4000)[0]
    sides = agreement(distances[:, 0], distances[:, 1], preferred)
    assert drawn.mean() == pytest.approx(sides.mean(), abs=4 * sides.std() / 20 / 4000**0.5)
    assert drawn.std() == pytest.approx(sides.std() / 20, rel=0.05)


def test_bootstrap_draws_within_groups() -> None:
    # The correlation is 1 in one group and -1 in the other: only draws within groups keep every mean at 0.
    judged = _pairs([*range(10), *range(10)], [0] * 10 + [1] * 10)
    drawn = bootstrap(judged, [_column([*range(10), *range(10, 0, -1)])], resamples=50)
    assert drawn == pytest.approx(np.zeros((1, 50)))


def test_bootstrap_draws_every_group(rng: np.random.Generator) -> None:
    judged, distances = _pairs(rng.random(20), [0] * 8 + [1] * 12), rng.random(20)
    generator = generator_of("pairs")
    rows = [start + generator.integers(size, size=(30, size)) for start, size in ((0, 8), (8, 12))]
    expected = [
        np.mean([stats.spearmanr(distances[part[draw]], judged.judged[part[draw]]).statistic for part in rows])
        for draw in range(30)
    ]
    drawn = bootstrap(judged, [_column(distances)], resamples=30)
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
        drawn = bootstrap(replace(_triplets(preferred), name=str(seed)), distances, resamples=200)
        one, other = (float(score(_triplets(preferred), of_metric)) for of_metric in distances)
        found.append(p_value(other - one, drawn[1] - drawn[0]))
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.1)


def test_p_value_and_interval_of_what_is_undefined() -> None:
    assert np.isnan(p_value(np.nan, np.zeros(9)))
    assert p_value(0.2, np.array([np.nan, 0.2, 0.2])) == 1 / 3
    assert interval(np.array([np.nan, 1.0, np.nan])) == (1, 1)
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_samples(rng: np.random.Generator) -> None:
    preferred = rng.integers(0, 2, 300).astype(float)
    perfect = np.stack([preferred, 1 - preferred], 1)
    distances = np.array([perfect, rng.random((300, 2)), perfect])
    sets = [_triplets(preferred), replace(_triplets(preferred[:200]), name="other")]
    samples = [score_set(judged, distances[:, : len(judged)]) for judged in sets]
    assert samples[0].values[[0, 2]].tolist() == [1, 1]
    assert samples[0].intervals[0] == (1, 1)
    mean = Sample.mean(samples)
    assert mean.values[1] == pytest.approx((samples[0].values[1] + samples[1].values[1]) / 2)
    assert mean.intervals[1][0] < mean.values[1] < mean.intervals[1][1]
    assert mean.differences.values.tolist() == pytest.approx([0, mean.values[1] - 1, 0])
    assert mean.differences.intervals[1] == pytest.approx([bound - 1 for bound in mean.intervals[1]])
    assert p_value(float(mean.differences.values[1]), mean.differences.drawn[1]) == 1 / 1001


def test_samples_of_every_kind_of_set(rng: np.random.Generator) -> None:
    grouped = _pairs(rng.random(24), [0, 1] * 12)
    for judged in (_triplets(rng.random(60)), _same(rng.random(50)), _pairs(rng.random(40)), grouped):
        distances = rng.random((2, len(judged), 2))
        sample = score_set(judged, distances)
        for metric in range(2):
            assert sample.values[metric] == float(score(judged, distances[metric]))
            ends = np.percentile(sample.drawn[metric], (2.5, 97.5))
            assert sample.intervals[metric] == pytest.approx(tuple(ends))


def test_undefined_scores_stay_undefined() -> None:
    constant, spread = _pairs([1.0] * 12), np.arange(24.0).reshape(2, 12, 1)
    sample = score_set(constant, spread)
    assert np.isnan(sample.values).all()
    assert np.isnan(sample.intervals).all()
    judged = _pairs([1.0, 2.0, 3.0])  # of which some resamples are all one pair
    sample = score_set(judged, spread[:, :3])
    assert sample.values.tolist() == pytest.approx([1, 1])
    assert np.isnan(sample.drawn).any()
    assert np.array(sample.intervals) == pytest.approx(np.ones((2, 2)))


def test_intervals_are_of_95_percent(rng: np.random.Generator) -> None:
    preferred, distances = rng.random(400), rng.random((1, 400, 2))
    sample = score_set(_triplets(preferred), distances)
    error = agreement(distances[0, :, 0], distances[0, :, 1], preferred).std() / 20
    expected = [sample.values[0] - 1.96 * error, sample.values[0] + 1.96 * error]
    assert sample.intervals[0] == pytest.approx(expected, abs=0.25 * error)


def test_differences_are_paired(rng: np.random.Generator) -> None:
    # The metrics differ in one triplet of 200, so their difference is far surer than either.
    preferred, distances = rng.integers(0, 2, 200).astype(float), rng.random((200, 2))
    other = distances.copy()
    other[0] = other[0, ::-1]
    sample = score_set(_triplets(preferred), np.array([distances, other]))
    less = sample.differences
    assert abs(less.values[1]) == pytest.approx(1 / 200)
    assert np.ptp(less.intervals[1]) < 0.25 * np.ptp(sample.intervals[0])
    # One item that is drawn k times, k Poisson of mean 1, is as far from 1 as 1 is from 0 unless k = 1.
    assert p_value(float(less.values[1]), less.drawn[1]) == pytest.approx(1 - np.exp(-1), abs=0.05)


def test_resamples_cost_no_sorting(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sort, sorted_sizes = np.argsort, []
    monkeypatch.setattr(scores.np, "argsort", lambda a, **how: sorted_sizes.append(len(a)) or sort(a, **how))
    bootstrap(_same(rng.random(480)), [rng.random((480, 1))], resamples=200)
    assert sorted_sizes == [480, 480]  # once for all resamples, and once for the score itself
