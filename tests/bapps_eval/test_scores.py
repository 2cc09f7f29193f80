"""Scores against values worked out by hand, against scipy and against lpips; the bootstrap against theory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from bapps_eval import scores
from bapps_eval.data import PairSet, SameSet, TripletSet
from bapps_eval.scores import agreement, average_precision, bootstrap, rank_correlation, score, summarise

HERE = Path()


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


def test_average_precision_equals_lpips(rng: np.random.Generator) -> None:
    trainer = pytest.importorskip("lpips.trainer")
    distances, same = rng.random(60).astype(np.float32), rng.integers(0, 4, 60) / 3

    class Loader:
        def load_data(self) -> list[dict[str, torch.Tensor]]:
            return [{"p0": torch.from_numpy(distances), "p1": torch.zeros(60), "same": torch.from_numpy(same)}]

    expected, _ = trainer.score_jnd_dataset(Loader(), lambda first, second: first)
    assert average_precision(distances.astype(float), same) == pytest.approx(expected, rel=1e-12)


def test_two_alternatives_equal_lpips(rng: np.random.Generator) -> None:
    trainer = pytest.importorskip("lpips.trainer")
    distances, preferred = rng.integers(0, 5, (60, 2)).astype(float), rng.random(60)

    class Loader:
        def load_data(self) -> list[dict[str, torch.Tensor]]:
            first, second = map(torch.from_numpy, distances.T)
            return [{"ref": torch.zeros(60), "p0": first, "p1": second, "judge": torch.from_numpy(preferred)}]

    expected, _ = trainer.score_2afc_dataset(Loader(), lambda reference, other: other)
    assert score(_triplets(preferred), distances) == pytest.approx(expected, rel=1e-12)


def test_rank_correlation_equals_scipy(rng: np.random.Generator) -> None:
    first, second = rng.integers(0, 9, (5, 40)).astype(float), rng.random((5, 40))
    expected = [stats.spearmanr(*lists).statistic for lists in zip(first, second, strict=True)]
    assert rank_correlation(first, second).tolist() == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_of_a_constant() -> None:
    assert rank_correlation(np.ones(4), np.arange(4.0)) == 0
    assert rank_correlation(np.arange(4.0), np.ones(4)) == 0


def test_score_of_pairs_is_within_groups() -> None:
    judged, distances = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], _column([11, 12, 13, 3, 2, 1])
    assert score(_pairs(judged, [0, 0, 0, 1, 1, 1]), distances) == pytest.approx((1 - 1) / 2)
    assert score(_pairs(judged, [0, 0, 1, 1, 0, 1]), distances) == pytest.approx((-0.5 + 0.5) / 2)
    assert score(_pairs(judged), distances) == pytest.approx(stats.spearmanr(judged, distances[:, 0]).statistic)


def test_score_of_resamples_is_that_of_each(rng: np.random.Generator) -> None:
    rows = rng.integers(12, size=(6, 12))
    for judged in (_triplets(rng.random(12)), _same(rng.random(12)), _pairs(rng.random(12))):
        distances = rng.random((12, 2))
        one_by_one = [float(score(judged, distances, row)) for row in rows]
        assert score(judged, distances, rows).tolist() == pytest.approx(one_by_one)
        assert len(set(one_by_one)) == 6


def test_bootstrap_is_seeded(rng: np.random.Generator) -> None:
    sets, distances = (
        [_triplets(rng.random(30)), _same(rng.random(20))],
        [[rng.random((30, 2)), rng.random((20, 1))]],
    )
    first = bootstrap(sets, distances, resamples=50)
    assert first.shape == (1, 50)
    assert np.array_equal(first, bootstrap(sets, distances, resamples=50))
    assert not np.array_equal(first, bootstrap(sets, distances, resamples=50, seed=1))


def test_bootstrap_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sets, distances = [_triplets(rng.random(30))], [[rng.random((30, 2))]]
    whole = bootstrap(sets, distances, resamples=50)
    monkeypatch.setattr(scores, "_BLOCK", 100)
    assert np.array_equal(whole, bootstrap(sets, distances, resamples=50))


def test_bootstrap_spreads_as_theory_says(rng: np.random.Generator) -> None:
    preferred, distances = rng.random(400), rng.random((400, 2))
    drawn = bootstrap([_triplets(preferred)], [[distances]], resamples=4000)[0]
    sides = agreement(distances[:, 0], distances[:, 1], preferred)
    assert drawn.mean() == pytest.approx(sides.mean(), abs=4 * sides.std() / 20 / 4000**0.5)
    assert drawn.std() == pytest.approx(sides.std() / 20, rel=0.05)


def test_bootstrap_averages_over_sets() -> None:
    sets = [_triplets([1.0] * 4), _triplets([0.5] * 4)]
    assert bootstrap(sets, [[np.array([[2.0, 1.0]] * 4)] * 2], resamples=3).tolist() == [[0.75] * 3]


def test_bootstrap_draws_within_groups() -> None:
    # The correlation is 1 in one group and -1 in the other: only draws within groups keep every mean at 0.
    judged = _pairs([*range(10), *range(10)], [0] * 10 + [1] * 10)
    drawn = bootstrap([judged], [[_column([*range(10), *range(10, 0, -1)])]], resamples=50)
    assert drawn == pytest.approx(np.zeros((1, 50)))


def test_summaries(rng: np.random.Generator) -> None:
    preferred = rng.integers(0, 2, 300).astype(float)
    perfect = np.stack([preferred, 1 - preferred], 1)
    guess = rng.random((300, 2))
    sets = [_triplets(preferred), _triplets(preferred[:200])]
    right, random, same = summarise(sets, [[perfect, perfect[:200]], [guess, guess[:200]], [perfect, perfect[:200]]])
    assert (right.scores, right.mean, right.interval) == ((1, 1), 1, (1, 1))
    assert (right.difference, right.difference_interval) == (0, (0, 0))
    assert (same.difference, same.difference_interval) == (0, (0, 0))
    assert random.mean == pytest.approx(sum(random.scores) / 2)
    assert random.interval[0] < random.mean < random.interval[1]
    assert random.difference == pytest.approx(random.mean - 1)
    assert random.difference_interval == pytest.approx([bound - 1 for bound in random.interval])


def test_intervals_are_of_95_percent(rng: np.random.Generator) -> None:
    preferred, distances = rng.random(400), rng.random((400, 2))
    (summary,) = summarise([_triplets(preferred)], [[distances]])
    error = agreement(distances[:, 0], distances[:, 1], preferred).std() / 20
    expected = [summary.mean - 1.96 * error, summary.mean + 1.96 * error]
    assert summary.interval == pytest.approx(expected, abs=0.25 * error)


def test_differences_are_paired(rng: np.random.Generator) -> None:
    # The metrics differ in one triplet of 200, so their difference is far surer than either.
    preferred, distances = rng.integers(0, 2, 200).astype(float), rng.random((200, 2))
    other = distances.copy()
    other[0] = other[0, ::-1]
    first, second = summarise([_triplets(preferred)], [[distances], [other]])
    width = second.difference_interval[1] - second.difference_interval[0]
    assert abs(second.difference) == pytest.approx(1 / 200)
    assert width < 0.25 * (first.interval[1] - first.interval[0])
