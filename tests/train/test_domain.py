import dataclasses
import re

import numpy as np
import pytest
from cli_images import TINY_BUNDLE, save_image

from afv_metric.bundles.bundle import save_bundle
from afv_metric.cli import main
from afv_metric.train import domain
from afv_metric.train.adapt import adapt_bundle
from afv_metric.train.domain import write_domain_report


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    for name, count in (("_LADDER_IMAGES", 2), ("_NEIGHBOUR_IMAGES", 12), ("_CROPS", 200)):
        monkeypatch.setattr(domain, name, count)


def test_numbers_tell_before_from_after(bundle, images, tmp_path, monkeypatch):
    content = {}
    monkeypatch.setattr(domain, "write_page", lambda *_, **found: content.update(found))
    adapted = adapt_bundle(bundle, images, "mine", samples=300, quiet=True)
    write_domain_report(bundle, adapted, [images], tmp_path / "report.html", quiet=True)
    before, after = (np.array([row[first : first + 2] for row in content["whitening"]]) for first in (1, 3))
    assert np.abs(np.log(after)).max() < 0.5 < np.abs(np.log(before)).max()
    order = {kind: shares for kind, *shares in content["ladders"]["order"]}
    assert order["noise"] == [1, 1]
    assert dict(content["ladders"]["sizes"])["blur (sigma, pixels)"][0][0] == "0.5"
    assert (content["files"], content["tiles"], len(content["neighbours"]), len(content["maps"])) == (64, 64, 6, 3)


def test_the_command_writes_one_page_with_judgements(bundle, images, tmp_path, capsys):
    folder = save_bundle(dataclasses.replace(bundle, name="<mine>"), tmp_path / "mine")
    rows = ["reference,distorted,distance"]
    for noise in (0, 10, 20, 40, 80):
        save_image(tmp_path / f"{noise}.png", noise=noise)
        rows.append(f"0.png,{noise}.png,{noise}")
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    command = ["report", str(folder), "--data", str(images), "--before", TINY_BUNDLE, "--quiet"]
    assert main([*command, "--judged", str(tmp_path / "scores.csv")]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Domain report: &lt;mine&gt;" in page
    assert "Judged pairs: rank correlation" in page
    assert len(re.findall('<img src="data:image/png;base64,', page)) == 6 * (1 + 2 * 5) + 3 * 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert main([*command[:2], str(tmp_path), *command[2:]]) == 2
    assert "with --data the report is on one bundle, got 2" in capsys.readouterr().err


def test_bundles_of_channels_that_do_not_go_together_are_refused(bundle, images, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for index in range(64):
        np.save(files / f"{index}.npy", np.random.default_rng(index).integers(0, 256, (64, 64, 5), np.uint8))
    five = adapt_bundle(bundle, files, "five", samples=10, channels=5, quiet=True)
    with pytest.raises(ValueError, match="of 3 channels, five for 5: choose one of as many"):
        write_domain_report(bundle, five, [files], tmp_path / "report.html", quiet=True)
    write_domain_report(five, five, [files], tmp_path / "report.html", quiet=True)
    grey = adapt_bundle(bundle, images, "grey", samples=10, channels=1, quiet=True)
    write_domain_report(bundle, grey, [images], tmp_path / "report.html", quiet=True)
