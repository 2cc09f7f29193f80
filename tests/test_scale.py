"""A distance as the strength of a known distortion: the strength that was used is the one that is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afv_metric import AFVDistance
from afv_metric.images import read_image
from afv_metric.scale import KINDS, Scale, calibrate, measure_ladders, strength_at

IMAGES = Path(__file__).parents[1] / "examples" / "images"


@pytest.fixture(scope="module")
def metric() -> AFVDistance:
    return AFVDistance()


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """Sky, shore, and a picture of plain stripes: what a strength amounts to differs between them by far."""
    reference = read_image(IMAGES / "reference.png")
    stripes = (torch.arange(64) // 8 % 2 * 200 + 20).byte().expand(1, 3, 64, 64)
    return [reference[..., :64, :64].contiguous(), reference[..., 64:, 32:96].contiguous(), stripes.contiguous()]


@pytest.mark.parametrize(
    ("name", "strengths"), [("blur", (0.65, 1.3, 3)), ("jpeg", (55, 30, 15)), ("noise", (5.5, 11, 35))]
)
def test_the_strength_of_the_kind_is_named(
    metric: AFVDistance, images: list[torch.Tensor], name: str, strengths: tuple[float, ...]
) -> None:
    """Within 20 %, on every image; none of these strengths is a step of the ladder."""
    for image in images[:2]:
        curve = measure_ladders(metric, image)[name]
        pixels = image[0].permute(1, 2, 0).numpy()
        for strength in strengths:
            assert strength not in KINDS[name].strengths
            distorted = KINDS[name].distort(pixels, strength, np.random.default_rng(77))
            distance = float(metric(image, torch.from_numpy(distorted.copy()).permute(2, 0, 1)))
            assert strength_at(name, curve, distance) == pytest.approx(strength, rel=0.2)


def test_the_image_decides(metric: AFVDistance, images: list[torch.Tensor]) -> None:
    """Why the ladder is measured on the reference itself: one distance is another noise in each of these."""
    found = [strength_at("noise", measure_ladders(metric, image)["noise"], 1.0) for image in images]
    assert max(found) > 1.5 * min(found)  # type: ignore[type-var]


def test_beyond_the_ladder_there_is_no_strength() -> None:
    curve = np.linspace(1, 2, len(KINDS["blur"].strengths))
    assert strength_at("blur", curve, 0.5) is None
    assert strength_at("blur", curve, 2.5) is None
    assert strength_at("blur", np.zeros_like(curve), 0) is None  # of a plain image
    assert strength_at("blur", curve, 2) == pytest.approx(8)


def test_the_table_is_monotone_and_strict(images: list[torch.Tensor], tmp_path: Path) -> None:
    def l2(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first.float() - second.float()).square().mean((1, 2, 3)).sqrt()

    scale = calibrate(l2, images, bundle="abc", form="local")
    for percent in (10, 50, 90):
        assert all((np.diff(curve) >= 0).all() for curve in scale.curves(percent).values())
    assert scale.percentile(0) == 0
    assert scale.percentile(1e9) == 100
    # Root mean square noise is the noise, but for what is cut off.
    assert strength_at("noise", scale.curves()["noise"], 6) == pytest.approx(6, rel=0.1)
    scale.save(tmp_path)
    assert Scale.load(tmp_path, "abc") == scale
    with pytest.raises(ValueError, match="of another bundle"):
        Scale.load(tmp_path, "abd")
    good = json.loads((tmp_path / "scale.json").read_text())
    for wrong in (
        {"more": 1},
        {"neighbours": [1, 2]},
        {"distances": {}},
        {"strengths": {"blur": [1]}},
        {"images": None},
    ):
        changed = {**good, **wrong}
        if wrong == {"images": None}:
            del changed["images"]
        (tmp_path / "scale.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="make it by afv-metric calibrate"):
            Scale.load(tmp_path, "abc")
    with pytest.raises(ValueError, match="never fall"):
        replace(scale, neighbours=scale.neighbours[::-1])
    with pytest.raises(ValueError, match="two images at least"):
        calibrate(l2, images[:1], bundle="abc", form="local")
    with pytest.raises(ValueError, match="three channels, got 1"):
        measure_ladders(l2, images[0][:, :1])
