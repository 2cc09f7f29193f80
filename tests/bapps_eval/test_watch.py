"""What training watches judged sets with, against the metric on one item at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.fisher.forms import FORMS
from bapps_eval.data import JudgedSet
from bapps_eval.scores import agreement, rank_correlation
from bapps_eval.watch import make_evaluation


def _save_noisy(folder, amplitude, seed=0):
    generator = np.random.default_rng(seed)
    base = np.kron(np.random.default_rng(5).integers(60, 200, (8, 8, 3)), np.ones((6, 6, 1)))
    noisy = base + generator.normal(0, 1, base.shape) * amplitude
    path = folder / f"{amplitude}-{seed}.png"
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return path


def _pairs(folder, amplitudes=(2, 10, 60, 30, 5, 20), name="noise"):
    reference = _save_noisy(folder, 0)
    pairs = [(reference, _save_noisy(folder, amplitude, 1)) for amplitude in amplitudes]
    return JudgedSet("pairs", name, folder, pairs, np.array(amplitudes, float), np.zeros(len(pairs), np.intp))


def _triplets(folder):
    reference, near, far = _save_noisy(folder, 0), _save_noisy(folder, 3, 1), _save_noisy(folder, 60, 1)
    items = [(reference, near, far), (reference, far, near)]
    return JudgedSet("triplets", "2afc/noise", folder, items, np.array([0.0, 0.75]))


def _read(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]


def test_scores_are_those_of_the_metric(bundle, tmp_path):
    pairs = _pairs(tmp_path, (2, 4, 6, 5, 3))
    pairs.judged[:] = [1, 5, 2, 4, 3]
    triplets = _triplets(tmp_path)
    values = make_evaluation([pairs, triplets])(bundle)
    for form in FORMS:
        metric = AFVDistance(bundle, form=form)
        distances = [[float(metric(_read(x), _read(y))) for y in others] for x, *others in pairs.images]
        expected = float(rank_correlation(np.array(distances)[:, 0], pairs.judged))
        assert values[f"{form}/noise"] == pytest.approx(expected)
        distances = np.array([[float(metric(_read(x), _read(y))) for y in others] for x, *others in triplets.images])
        of_triplets = float(agreement(distances[:, 0], distances[:, 1], triplets.judged).mean())
        assert values[f"{form}/2afc/noise"] == of_triplets == 0.875
        assert values[f"{form}/mean"] == pytest.approx((expected + of_triplets) / 2)


def test_sets_are_limited_unless_their_groups_would_vanish(bundle, tmp_path, monkeypatch):
    pairs = _pairs(tmp_path)
    grouped = replace(pairs, name="grouped", groups=np.array([0, 1, 2, 0, 1, 2]))
    lengths = {}
    monkeypatch.setattr("bapps_eval.watch.score", lambda one, d: lengths.update({one.name: len(d)}) or 1)
    make_evaluation([pairs, grouped], items=3)(bundle)
    assert lengths == {"noise": 3, "grouped": 6}
