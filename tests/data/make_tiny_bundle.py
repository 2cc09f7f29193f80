"""Make the tiny bundle that the tests read, and the golden numbers that pin its format.

    python tests/data/make_tiny_bundle.py

Run it only when the format or the definition of a distance changes on purpose: the numbers are the contract.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from afv_metric import AFVDistance, Bundle, load_bundle, save_bundle
from afv_metric.fisher.sampling import sample_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    recipe = {"width": 4, "generator_width": 4, "latent_size": 8, "gain": 8.0, "seed": 0}
    discriminator = Discriminator(DiscriminatorConfig(width=4, slope=0.2, head="position", gain=8.0)).baked()
    generator = Generator(GeneratorConfig(width=4, latent_size=8)).eval()
    bundle = Bundle(
        name="tiny-bundle",
        discriminator=discriminator,
        generator=generator,
        statistics=sample_statistics(discriminator, generator, "logit", 50, 0),
        levels=(0.2, 0.4, 0.4),
        blocks=(1, 2),
        pooling=8.0,
        sampling={"source": "generator", "seed": 0},
        training={"iterations": 0, "recipe": recipe},
        licence={"weights": "BSD-2-Clause"},
        card="# tiny-bundle\n\nRandom weights, for tests.\n",
    )
    save_bundle(bundle, HERE / "tiny-bundle")

    images = torch.randint(256, (3, 3, 34, 40), dtype=torch.uint8)
    golden = {"img0": images[:2].clone(), "img1": images[1:].clone()}
    for form in ("fisher", "local", "activation"):
        metric = AFVDistance(load_bundle(HERE / "tiny-bundle"), form=form).double()
        golden[form] = metric(golden["img0"], golden["img1"])
    golden["vectors"] = metric.score_vectors(golden["img0"])[:, ::101].contiguous()
    safetensors.torch.save_file(golden, HERE / "golden.safetensors")


if __name__ == "__main__":
    main()
