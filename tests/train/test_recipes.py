import pytest

from afv_metric.train.recipes import RECIPES, Recipe
from afv_metric.train.settings import override


def test_every_setting_is_documented_and_every_documented_one_exists():
    import dataclasses

    names = {field.name for field in dataclasses.fields(Recipe)}
    lines = Recipe.__doc__.split("Attributes:")[1].splitlines()
    documented = {line.split(":")[0].strip() for line in lines if line.startswith("    " * 2) and line[8] != " "}
    assert documented == names


def test_overriding():
    recipe = override(RECIPES["imagenet"], ["width=64", "gain=2.5", "spectral_norm=no", "loss=least-squares"])
    assert (recipe.width, recipe.gain, recipe.spectral_norm, recipe.loss) == (64, 2.5, False, "least-squares")
    assert recipe.discriminator.width == 64


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("teacher=3", "the settings are name, width"),
        ("iteration=5", "got 'iteration=5'; did you mean 'iterations'"),
        ("width", "expected NAME=VALUE"),
        ("width=wide", r"width must be a number \(int\)"),
        ("spectral_norm=perhaps", "must be yes or no"),
        ("loss=l2", "loss must be one of hinge, logistic, least-squares"),
        ("negatives=2", "share of the batch"),
        ("batch_size=0", "batch_size must be positive"),
        ("discriminator_average=1", r"discriminator_average must be in \[0, 1\)"),
        ("r1=-1", "r1 must not be negative"),
        ("discriminator_steps=0", "discriminator_steps must be positive"),
        ("image_size=48", "image_size must be 32 or 64"),
    ],
)
def test_wrong_settings_are_refused(assignment, message):
    with pytest.raises(ValueError, match=message):
        override(Recipe(), [assignment])


def test_the_published_settings_are_the_paper_s():
    paper = RECIPES["imagenet-paper"]
    assert (paper.loss, paper.head, paper.slope, paper.gain, paper.negatives) == ("least-squares", "pooled", 0, 1, 0)
    assert (paper.generator_rate, paper.discriminator_rate, paper.beta1, paper.beta2) == (2e-4, 4e-4, 0, 0.999)
    assert (paper.width, paper.latent_size, paper.batch_size, paper.iterations) == (128, 128, 64, 800_000)
    assert (paper.generator_average, paper.discriminator_average, paper.augmentation) == (0.9, 0, "paper")


def test_every_recipe_goes_by_its_name():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert RECIPES["imagenet64"].gamma > 0
