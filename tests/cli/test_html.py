"""Pages of what commands found: one file that asks for nothing, and works in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_images import QUIET, save_image

from afv_metric.cli import html, main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def page(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """The page of three pairs, a file without partner, and one that is no image."""
    save_image(folders[0] / "<b>alone.png")
    (folders[1] / "a.png").write_text("no image")
    file = tmp_path / "new" / "page.html"
    assert main(["dirs", *map(str, folders), "--html", str(file), *QUIET]) == 1
    return file


def test_page_is_one_file_with_all_of_it(page: Path, folders: tuple[Path, Path]) -> None:
    text = page.read_text()
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]
    assert not re.search(r"https?://|<(link|iframe|script src)|url\(|@import|fetch\(", text)
    assert "default-src 'none'" in text
    assert re.findall(r"<figcaption>(\S+): <b>", text) == ["deep/c.png", "b.png"]  # farthest first
    assert text.count('<img src="data:image/png;base64,') == 4
    assert text.count('<img class="over" src="data:image/png;base64,') == 2
    assert f"&lt;b&gt;alone.png: only in {folders[0]}" in text
    assert "a.png: cannot be read" in text


def test_every_control_and_picture_has_a_name(page: Path) -> None:
    text = page.read_text()
    assert all('alt="' in image for image in re.findall("<img[^>]*>", text))
    assert all('aria-label="' in control for control in re.findall("<input[^>]*>", text))
    assert re.search('<html lang="en">', text)
    for heading in re.findall(r'<section aria-labelledby="(.*?)"', text):
        assert f'<h2 id="{heading}">' in text


def test_farthest_pairs_alone_have_pictures(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "_CARDS", 1)
    assert main(["dirs", *map(str, folders), "--html", str(tmp_path / "page.html"), *QUIET]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "1 of 3 pairs" in text
    assert re.findall('<a href="(.*?)">(.*?)</a>', text) == [("#pair-1", "deep/c.png")]


def test_large_images_become_small_ones(tmp_path: Path) -> None:
    images = [str(save_image(tmp_path / f"{noise}.png", 1, noise, (600, 300))) for noise in (0, 9)]
    assert main(["compare", *images, "--html", str(tmp_path / "page.html"), *QUIET]) == 0
    assert (tmp_path / "page.html").read_text().count('width="256" height="128"') == 3


def test_pages_of_the_other_commands(folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert main(["matrix", str(folders[1]), "--html", str(file), *QUIET]) == 0
    text = file.read_text()
    assert len(re.findall("<td style", text)) == 9
    assert text.count("--share: 100") == 2
    assert main(["sets", *map(str, folders), "--size", "32", "--html", str(file), *QUIET]) == 0
    text = file.read_text()
    assert text.count('alt="sample ') == 6
    assert '<th scope="row">similarity</th>' in text
    assert "the interval is rough" in text
    limit = ["--at-most", "0", "--junit", str(tmp_path / "x.xml")]
    assert main(["check", *map(str, folders), *limit, "--html", str(file), *QUIET]) == 1
    assert "3 of 3 pairs" in file.read_text()
    assert main(["check", *map(str, folders), *limit, "--html", str(tmp_path / "x.xml"), *QUIET]) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "paper"), [(0, "rgb(21, 24, 27)"), (1, "rgb(255, 255, 255)")])
def test_slider_and_sorting_in_a_browser(page: Path, tmp_path: Path, scheme: int, paper: str) -> None:
    """What a hand would do is done by a script at the end of the page."""
    hand = """<script>
    const slider = document.querySelector("input");
    slider.value = 20;
    slider.dispatchEvent(new Event("input"));
    const names = () => [...document.querySelectorAll("tbody th")].map((cell) => cell.textContent).join();
    const buttons = document.querySelectorAll("th button");
    const before = names();
    buttons[1].click();
    const near = names();
    buttons[0].click();
    document.title = [before, near, names(), buttons[0].closest("th").getAttribute("aria-sort"),
      getComputedStyle(document.querySelector(".over")).clipPath,
      getComputedStyle(document.documentElement).backgroundColor].join("; ");
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", hand))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command = [str(CHROMIUM), *flags, f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title
    far_first, near_first = "deep/c.png,b.png", "b.png,deep/c.png"
    expected = [far_first, near_first, near_first, "ascending", "inset(0px 0px 0px 20%)", paper]
    assert title[1].split("; ") == expected
