"""The page holds what was measured, asks for nothing, and draws itself in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_sets import save_grey, save_pairs, save_root
from PIL import Image

from bapps_eval import html
from bapps_eval.data import JudgedSet, read_pairs, read_root
from bapps_eval.html import write_html
from bapps_eval.report import make_report
from bapps_eval.results import MetricRecord, Results, plan_results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two metrics on five sets; ``worst`` always says the opposite of what people said, ``best`` the same."""
    root = save_root(tmp_path / "bapps")
    sets = [*read_root(root), read_pairs(save_pairs(tmp_path / "noise.csv", [10, 20, 30], [1, 3, 2]))]
    best, worst = [], []
    for judged in sets:
        far = judged.judged if judged.name == "noise" else 1 - judged.judged
        triplets = len(judged.images[0]) == 3
        best.append(np.stack([2 - far, 1 + far], 1) if triplets else far[:, None])
        worst.append(best[-1][:, ::-1] if triplets else -best[-1])
    return make(sets, [MetricRecord("best"), MetricRecord("worst")], zip(best, worst, strict=True))


def make(sets: Sequence[JudgedSet], metrics: Sequence[MetricRecord], distances: Iterable[object]) -> Results:
    """Results of given distances, by set, by metric."""
    results = plan_results(sets, metrics, {"limit": None, "split": "val"})
    for place, values in zip(results.distances, distances, strict=True):
        place[:] = values
    return results


def write(path: Path, results: Results, gallery: int = 12) -> str:
    write_html(path, make_report(results), gallery)
    return path.read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def items_of(data: dict[str, Any], metric: str, name: str) -> list[dict[str, Any]]:
    """Items of the gallery of a metric and a set, in the order in which they are shown."""
    rank = str(data["metrics"].index(metric))
    chosen = [item for item in data["gallery"]["items"] if data["sets"][item["set"]]["name"].rstrip("*") == name]
    return sorted((item for item in chosen if rank in item["ranks"]), key=lambda item: item["ranks"][rank])


def test_page_asks_for_nothing(results: Results, tmp_path: Path) -> None:
    page = write(tmp_path / "new/page.html", results)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe|script src)|url\(|@import|fetch\(|XMLHttpRequest", page)


def test_gallery_has_the_items_on_which_metric_and_people_disagree(results: Results, tmp_path: Path) -> None:
    data = data_of(write(tmp_path / "page.html", results))
    # 75 % and 25 % of the people: the first item is as bad as the second, and none is where the metric is right.
    assert [item["name"] for item in items_of(data, "worst", "2afc/cnn")] == ["000000", "000001"]
    assert items_of(data, "best", "2afc/cnn") == []
    item = items_of(data, "worst", "2afc/cnn")[0]
    assert item["judged"] == 0.75
    assert item["distances"][1] == [1.25, 1.75]
    shown = [picture(data["gallery"]["images"][index]["uri"]) for index in item["images"]]
    assert [image.getpixel((0, 0)) for image in shown] == [(grey,) * 3 for grey in (100, 150, 120)]


def test_gallery_is_ordered_and_cut(results: Results, tmp_path: Path) -> None:
    # People put the pairs at places 1, 3 and 2; this metric at 3, 2 and 1.
    results.distances[3][1] = [[9.0], [2.0], [1.0]]
    data = data_of(write(tmp_path / "page.html", results))
    assert [item["name"] for item in items_of(data, "worst", "noise")] == ["grey10", "grey20", "grey30"]
    page = write(tmp_path / "page.html", results, gallery=1)
    assert [item["name"] for item in items_of(data_of(page), "worst", "noise")] == ["grey10"]


def test_images_are_there_once(results: Results, tmp_path: Path) -> None:
    data = data_of(write(tmp_path / "page.html", results))
    images = [image["uri"] for image in data["gallery"]["images"]]
    assert len(set(images)) == len(images)
    items = items_of(data, "worst", "noise")
    assert len({item["images"][0] for item in items}) == 1


def test_gallery_is_bounded(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data_of(write(tmp_path / "page.html", results))["gallery"]["items"]
    monkeypatch.setattr(html, "_GALLERY_BYTES", 300)
    page = write(tmp_path / "page.html", results)
    kept = data_of(page)["gallery"]["items"]
    assert 0 < len(kept) < len(whole)
    assert f"{len(kept)} are in it, of {len(whole)}." in page
    # The worst of every set comes before the second worst of any.
    assert min(kept[-1]["ranks"].values()) == 0


def test_large_and_unusual_images_become_small_ones(results: Results, tmp_path: Path) -> None:
    save_grey(tmp_path / "black.png", 0, 400, 1000)
    (tmp_path / "grey10.png").unlink()
    Image.new("RGB", (1000, 400), (10, 20, 30)).save(tmp_path / "grey10.tiff")
    noise = results.sets[3]
    images = [(tmp_path / "black.png", tmp_path / "grey10.tiff"), *noise.images[1:]]
    data = data_of(
        write(tmp_path / "page.html", replace(results, sets=[*results.sets[:3], replace(noise, images=images)]))
    )
    item = next(item for item in items_of(data, "worst", "noise") if item["name"] == "grey10")
    shown = [data["gallery"]["images"][index] for index in item["images"]]
    assert [(image["width"], image["height"]) for image in shown] == [(256, 102)] * 2
    assert shown[1]["uri"].startswith("data:image/png;base64,")
    assert picture(shown[1]["uri"]).getpixel((5, 5)) == (10, 20, 30)


def test_without_images_a_sentence_stands_for_the_gallery(results: Results, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "bapps")
    page = write(tmp_path / "page.html", results)
    assert data_of(page)["gallery"] is None
    assert re.search(r"There is no gallery, because the images are not at hand: .*\.png", page)
    assert ">2afc/cnn" not in page
    assert "<h3>2AFC" in page
    assert "The gallery was left out." in write(tmp_path / "page.html", results, gallery=0)


def test_plots_have_the_scores(results: Results, tmp_path: Path) -> None:
    data = data_of(write(tmp_path / "page.html", results))
    assert [bars["name"] for bars in data["bars"]][-2:] == ["jnd/cnn*", "noise"]
    assert [bars["family"] for bars in data["bars"]] == ["traditional", "cnn", None, "cnn", "noise"]
    noise = data["bars"][-1]
    assert ([score[0] for score in noise["scores"]], noise["ceiling"], noise["chance"]) == ([1, -1], None, 0)
    cnn = next(judged for judged in data["sets"] if judged["name"] == "2afc/cnn*")
    assert cnn["votes"] == [{"unanimity": 0.75, "items": 2, "scores": [0.75, 0.25]}]
    assert cnn["points"]["people"] == [0.5, -0.5]
    np.testing.assert_allclose(cnn["points"]["metrics"], [[0.167, -0.167], [-0.167, 0.167]])
    assert next(judged for judged in data["sets"] if judged["name"] == "noise")["votes"] is None


def test_votes_are_classed_by_how_sure_people_were(results: Results, tmp_path: Path) -> None:
    votes = np.array([0.4, 0.6, 1 / 3, 0, 1, 0.8])
    judged = replace(results.sets[0], images=[results.sets[0].images[0]] * 6, judged=votes)
    distances = np.array([[1.0, 2.0]] * 6)  # it always sides with 1 - p
    page = write(tmp_path / "page.html", make([judged], [MetricRecord("l2")], [[distances]]))
    assert data_of(page)["sets"][0]["votes"] == [
        {"unanimity": 0.622, "items": 3, "scores": [round((0.6 + 0.4 + 2 / 3) / 3, 4)]},
        {"unanimity": 0.8, "items": 1, "scores": [0.2]},
        {"unanimity": 1.0, "items": 2, "scores": [0.5]},
    ]


def test_scatter_plot_is_bounded(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_POINTS", 2)
    points = data_of(write(tmp_path / "page.html", results))["sets"][2]["points"]
    assert (points["rows"], points["total"]) == ([0, 2], 4)
    assert len(points["people"]) == 2


def test_names_cannot_become_markup(results: Results, tmp_path: Path) -> None:
    hostile = "</script><script>document.title='gone'</script>"
    named = replace(results, sets=[replace(results.sets[0], name=hostile), *results.sets[1:]])
    named = replace(named, metrics=[MetricRecord(hostile), results.metrics[1]], settings={"root": [hostile]})
    page = write(tmp_path / "page.html", named)
    assert hostile not in page
    assert page.count("<script") == 2
    assert data_of(page)["metrics"][0] == hostile


def test_partial_sets_are_marked(results: Results, tmp_path: Path) -> None:
    page = write(tmp_path / "page.html", results)
    assert '<th scope="col">cnn*</th>' in page
    assert "* partial: 2afc/cnn: 2 of 4,720 items" in page
    assert "2afc/cnn*" in [judged["name"] for judged in data_of(page)["sets"]]


def test_undefined_scores_are_null_and_a_dash(results: Results, tmp_path: Path) -> None:
    noise = replace(results.sets[3], judged=np.ones(3))
    page = write(tmp_path / "page.html", replace(results, sets=[*results.sets[:3], noise]))
    assert data_of(page)["bars"][-1]["scores"] == [[None] * 3] * 2
    assert '<th scope="row">worst</th><td>-</td>' in page


def browse(page: Path, choice: str, folder: Path) -> str:
    """The document after its scripts have run; nothing may have gone wrong in them."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command = [str(CHROMIUM), *flags, "--dump-dom", page.as_uri() + choice]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


def parts(document: str, name: str) -> str:
    """The section of the document with this heading."""
    found = re.search(rf'<section aria-labelledby="{name}-title">(.*?)</section>', document, re.DOTALL)
    assert found
    return found[1]


def captions(section: str) -> Sequence[str]:
    return [re.sub("<.*?>", "", text) for text in re.findall(r"<figcaption>(.*?)</figcaption>", section)]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_browser_draws_plots_and_gallery(results: Results, tmp_path: Path) -> None:
    write(tmp_path / "page.html", results)
    document = browse(tmp_path / "page.html", "#metric=worst", tmp_path)
    bars = parts(document, "bars")
    assert [caption.split()[0] for caption in captions(bars)] == [
        "2afc/traditional*",
        "2afc/cnn*",
        "2AFC",
        "jnd/cnn*",
        "noise",
    ]
    assert len(re.findall("<rect", bars)) == 10
    assert 'aria-label="noise: best 1.000 (' in bars
    assert len(re.findall('class="ceiling"', bars)) == 4
    assert len(captions(parts(document, "unanimity"))) == 3
    scatter = parts(document, "scatter")
    assert len(re.findall("<circle", scatter)) == 3
    assert 'aria-label="best against worst on 2afc/traditional*, 2afc/cnn*"' in scatter
    assert "take one side on 0 %" in scatter
    gallery = parts(document, "gallery")
    assert re.findall("<h3>(.*?)</h3>", gallery) == [
        "2afc/traditional*: 1 item, worst",
        "2afc/cnn*: 2 items, worst",
        "jnd/cnn*: 4 items, worst",
        "noise: 2 items, worst",
    ]
    assert gallery.count('<img src="data:image/png;base64,') == 3 * 3 + 6 * 2
    assert "000000: people find the right one nearer, worst the left one." in gallery
    assert "75 % of people<br>worst 1.75" in gallery


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_browser_draws_undefined_scores(results: Results, tmp_path: Path) -> None:
    sets = [
        *results.sets[:2],
        replace(results.sets[2], judged=np.zeros(4)),
        replace(results.sets[3], judged=np.ones(3)),
    ]
    write(tmp_path / "page.html", replace(results, sets=sets))
    bars = parts(browse(tmp_path / "page.html", "", tmp_path), "bars")
    assert 'aria-label="noise: best - (- to -)' in bars


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_browser_filters_by_what_the_address_says(results: Results, tmp_path: Path) -> None:
    write(tmp_path / "page.html", results)
    document = browse(tmp_path / "page.html", "#family=cnn&metric=worst&x=worst&y=worst", tmp_path)
    assert [caption.split()[0] for caption in captions(parts(document, "bars"))] == ["2afc/cnn*", "jnd/cnn*"]
    assert [caption.split()[0] for caption in captions(parts(document, "unanimity"))] == ["2afc/cnn*", "jnd/cnn*"]
    assert "take one side on 100 %" in parts(document, "scatter")
    gallery = parts(document, "gallery")
    assert re.findall("<h3>(.*?): ", gallery) == ["2afc/cnn*", "jnd/cnn*"]
    assert len(captions(gallery)) == 6
