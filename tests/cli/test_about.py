"""What a bundle is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_images import TINY_BUNDLE

from afv_metric import AFVDistance, __version__
from afv_metric.bundles import resolve as hub
from afv_metric.cli import about as cli
from afv_metric.cli import main

Capture = pytest.CaptureFixture[str]


def test_info(capsys: Capture) -> None:
    assert main(["info", TINY_BUNDLE]) == 0
    text = capsys.readouterr().out
    assert main(["info", TINY_BUNDLE, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    metric = AFVDistance(TINY_BUNDLE)
    parameters = len(metric.score_vectors(torch.zeros(1, 3, 32, 32))[0])
    assert record["name"] == "tiny-bundle"
    assert record["sha256"] == metric.bundle_hash
    assert record["parameters"] == parameters
    assert (record["form"], record["levels"]) == (metric.form, [0.2, 0.4, 0.4])
    assert record["discriminator"]["width"] == 4
    assert record["statistics"] == {"count": 50, "source": "generator", "seed": 0}
    assert record["training"]["iterations"] == 0
    assert record["licence"] == {"weights": "BSD-2-Clause"}
    for line in (
        f"sha256: {metric.bundle_hash}",
        f"parameters: {parameters}",
        "levels: 0.2, 0.4, 0.4",
        "blocks: 1, 2",
        "pooling: 8.0",
        "  source: generator",
        "    latent_size: 8",
        "  weights: BSD-2-Clause",
    ):
        assert line in text.splitlines()
    assert "ship" not in text


def test_info_of_the_default_lists_all(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(hub, "_shipped_bundles", lambda: {"tiny-bundle": Path(TINY_BUNDLE)})
    monkeypatch.setattr(cli, "DEFAULT_BUNDLE", "tiny-bundle")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name: tiny-bundle"
    assert lines[-1] == "bundles that ship with the package: tiny-bundle"


def test_cite(capsys: Capture) -> None:
    assert main(["cite", "--weights", TINY_BUNDLE, "--form", "local"]) == 0
    digest = AFVDistance(TINY_BUNDLE).bundle_hash[:12]
    assert capsys.readouterr().out == (
        f"afv_metric {__version__}, bundle tiny-bundle (sha256 {digest}), form local, levels 0.2/0.4/0.4, "
        "blocks 1/2, pooling 8; "
        f"Zhai et al., NeurIPS 2019, arXiv:1910.13101; torch {torch.__version__}\n"
    )
    assert main(["cite", "--weights", TINY_BUNDLE]) == 0
    assert "form activation," in capsys.readouterr().out
    assert main(["cite", "--weights", TINY_BUNDLE, "--form", "fisher"]) == 0
    assert "form fisher, levels 0.2/0.4/0.4; Zhai" in capsys.readouterr().out  # all layers, and no positions


@pytest.mark.parametrize("arguments", [["info", "no such bundle"], ["cite", "--weights", "no such bundle"]])
def test_wrong_bundle(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot find a bundle 'no such bundle'" in printed.err


def test_damaged_bundle(tmp_path: Path, capsys: Capture) -> None:
    for path in Path(TINY_BUNDLE).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
    assert main(["cite", "--weights", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
