import pytest

from afv_metric.train.divergence import DivergenceError, Watch

_WELL = {"loss_d": 1.0, "real_spread": 0.1, "fake_spread": 0.1, "sample_variance": 0.2}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named(value):
    with pytest.raises(DivergenceError, match=f"at iteration 7 loss_d is {value}"):
        Watch().check(7, _WELL | {"loss_d": value})


@pytest.mark.parametrize(
    ("failing", "network"),
    [({"real_spread": 0.0, "fake_spread": 1e-7}, "discriminator"), ({"sample_variance": 1e-8}, "generator")],
)
def test_a_collapse_counts_when_it_lasts(failing, network):
    watch = Watch()
    for _ in range(4):
        watch.check(1, _WELL | failing)
    watch.check(1, _WELL)  # recovered
    for _ in range(4):
        watch.check(1, _WELL | failing)
    with pytest.raises(DivergenceError, match=f"the {network} has collapsed"):
        watch.check(1, _WELL | failing)


def test_a_discriminator_that_tells_some_images_apart_has_not_collapsed():
    watch = Watch()
    for _ in range(20):
        watch.check(1, _WELL | {"fake_spread": 0.0})
