import hashlib
from pathlib import Path

import pytest

from afv_metric.bundles.bundle import Bundle, load_bundle, save_bundle
from afv_metric.bundles.golden import golden_distances, golden_pairs, with_golden_distances
from afv_metric.metric import AFVDistance


def test_golden_images_never_change() -> None:
    first, second = golden_pairs()
    content = first.numpy().tobytes() + second.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == "cdb597e4b491d5d7d12e34146b0f5624b3548af7a12eec50c214ab9e0b0b2a68"


def test_golden_distances_are_of_what_is_stored(bundle: Bundle, tmp_path: Path) -> None:
    golden = with_golden_distances(bundle)
    loaded = load_bundle(save_bundle(golden, tmp_path / "bundle"))
    assert loaded.golden == golden.golden
    assert loaded.golden["distances"] == golden_distances(loaded)
    assert set(loaded.golden["distances"]) == {"fisher", "local", "activation"}
    assert all(distance > 0 for distances in loaded.golden["distances"].values() for distance in distances)


def test_golden_distances_are_in_float64(bundle: Bundle) -> None:
    first, second = (images.double() / 127.5 - 1 for images in golden_pairs())
    exact = AFVDistance(bundle, form="activation")(first, second)
    assert golden_distances(bundle, ["activation"])["activation"] == pytest.approx(exact.tolist(), rel=1e-12)
