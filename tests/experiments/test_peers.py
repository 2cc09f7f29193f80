"""Peers that are not at hand are left out with a line, and nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from experiments.peers import peers_at_hand


def test_what_is_not_at_hand_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setitem(sys.modules, "piq", None)
    names = ["l2", "lpips-alex", "lpips-squeeze-baseline", "dists", "piq:fsim"]
    assert [metric.name for metric in peers_at_hand(names)] == ["l2"]
    lines = [record.message for record in caplog.records]
    assert [line.split()[0] for line in lines] == names[1:]
    assert "there is no alexnet" in lines[0]
    assert "needs another package" in lines[3]


def test_a_wrong_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no metric 'l3'"):
        peers_at_hand(["l2", "l3"])
