import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import fake_gpu
from PIL import Image

from afv_metric.bundles.twin import random_twin
from afv_metric.files import locked
from afv_metric.train import loop
from afv_metric.train.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from afv_metric.train.divergence import DivergenceError
from afv_metric.train.export import export_run
from afv_metric.train.loop import StoppedError, train
from afv_metric.train.state import State


def _train(recipe, images, out, **settings):
    return load_checkpoint(latest_checkpoint(train(recipe, images, out, quiet=True, **settings)))


def _assert_equal(one, other):
    """Bit by bit, but for the clock."""
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], dict):
            _assert_equal(one[name], other[name])
        elif isinstance(one[name], torch.Tensor):
            assert torch.equal(one[name], other[name]), name
        elif name not in ("seconds", "iterations"):
            assert one[name] == other[name], name


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_it_should(recipe, images, tmp_path):
    train(recipe, images, tmp_path, quiet=True)
    names = {path.name for path in tmp_path.iterdir()} - {"tensorboard"}
    assert names == {
        "checkpoint-0000005.pt", "checkpoint-0000006.pt", "recipe.json", "machines.json",
        "stats.jsonl", "monitors.jsonl", "samples-0000004.png", "samples-0000006.png",
    }  # fmt: skip
    lines = _lines(tmp_path / "stats.jsonl")
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert {"loss_d", "loss_g", "real", "fake", "corrupted", "seconds", "data_share"} <= lines[0].keys()
    monitored = _lines(tmp_path / "monitors.jsonl")
    assert [line["iteration"] for line in monitored] == [0, 6]
    assert 0 <= monitored[1]["fisher_similarity/held_out"] <= 1
    assert json.loads((tmp_path / "recipe.json").read_text()) == dataclasses.asdict(recipe)
    with Image.open(tmp_path / "samples-0000006.png") as grid:
        assert grid.size == (8 * 34 + 2, 8 * 34 + 2)


@pytest.mark.parametrize(("augmentation", "precision"), [("flip", "float32"), ("paper", "float16")])
@pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:torch.cuda.amp.GradScaler is enabled")
def test_an_iteration_stays_on_its_device(recipe, monkeypatch, augmentation, precision):
    # What draws a number on the CPU is left out.
    still = {"negatives": 0.0, "tolerance": 0.0}
    recipe = dataclasses.replace(recipe, augmentation=augmentation, precision=precision, gamma=0.1, **still)
    state, losses = State(recipe, torch.device("cpu")), {}
    monkeypatch.setattr(State, "step", lambda self, name, loss: losses.update({name: loss}))
    networks = [state.discriminator, state.generator, state.averaged_discriminator, state.averaged_generator]
    with fake_gpu(*networks):
        loop.iterate(state, recipe, torch.zeros(20, 3, 64, 64, dtype=torch.uint8), torch.device("cuda"))
    assert {name: loss.device.type for name, loss in losses.items()} == {"generator": "cuda", "discriminator": "cuda"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_run(recipe, images, tmp_path, precision):
    recipe = dataclasses.replace(recipe, precision=precision)
    whole = _train(recipe, images, tmp_path / "whole")
    train(dataclasses.replace(recipe, iterations=3), images, tmp_path / "parts", quiet=True)
    torch.manual_seed(12345)  # whatever happens in between
    _assert_equal(whole, _train(recipe, images, tmp_path / "parts"))


def _start(recipe, images, out, slow=""):
    """A run in a process of its own that can be killed."""
    settings = [f"{name}={value}" for name, value in dataclasses.asdict(recipe).items()]
    code = (
        "import sys, torch\n"
        "from afv_metric.train import __main__, loop\n"
        f"{slow}\n"
        "torch.set_num_threads(1)\n"
        "sys.exit(__main__.main(sys.argv[1:]))\n"
    )
    arguments = ["imagenet", "--data", str(images), "--out", str(out), "--quiet", "--set", *settings]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)


def _wait_for(condition, process):
    for _ in range(12000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("nothing happened for ten minutes")


# Writes half of the third checkpoint, says so, and waits to be killed.
_STUCK_IN_A_SAVE = """
import pathlib, time, torch
save, saves = torch.save, []
def stuck(state, path):
    save(state, path)
    saves.append(path)
    if len(saves) == 3:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        (pathlib.Path(path).parent / "stuck").touch()
        time.sleep(600)
torch.save = stuck
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(recipe, images, tmp_path):
    recipe = dataclasses.replace(recipe, iterations=40, checkpoint_interval=2, monitor_interval=100, keep_best=0)
    whole = _train(recipe, images, tmp_path / "whole")
    killed = tmp_path / "killed"

    process = _start(recipe, images, killed, _STUCK_IN_A_SAVE)
    _wait_for((killed / "stuck").exists, process)
    process.kill()
    process.communicate()
    assert list(killed.glob(".checkpoint-*")), "the kill did not hit the save"
    assert max(checkpoints(killed)) == 4
    (killed / "stuck").unlink()

    for reached in (9, 22, 31):
        process = _start(recipe, images, killed)
        _wait_for(lambda reached=reached: max(checkpoints(killed)) >= reached, process)
        process.kill()
        process.communicate()
    _assert_equal(whole, _train(recipe, images, killed))
    assert not list(killed.glob(".checkpoint-*"))
    stats = [
        [{key: value for key, value in line.items() if key not in ("seconds", "data_share")} for line in lines]
        for lines in (_lines(run / "stats.jsonl") for run in (tmp_path / "whole", killed))
    ]
    assert stats[0] == stats[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(recipe, images, tmp_path, monkeypatch, number):
    whole = _train(recipe, images, tmp_path / "whole")
    iterate, calls = loop.iterate, []

    def signalled(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return iterate(*arguments)

    monkeypatch.setattr(loop, "iterate", signalled)
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"{number.name} and saved at iteration 4"):
        train(recipe, images, tmp_path / "stopped", quiet=True)
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert max(checkpoints(tmp_path / "stopped")) == 4
    _assert_equal(whole, _train(recipe, images, tmp_path / "stopped"))


def test_other_settings_are_refused_and_named(recipe, images, tmp_path):
    train(dataclasses.replace(recipe, iterations=2), images, tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"gain was 8\.0 and is now 4\.0"):
        train(dataclasses.replace(recipe, gain=4.0), images, tmp_path, quiet=True)


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_settings_are_refused_before_the_first_checkpoint(recipe, images, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "iterate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, images, tmp_path, quiet=True)
    monkeypatch.undo()
    assert not checkpoints(tmp_path)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=r"seed was 0 and is now 5"):
        train(dataclasses.replace(recipe, seed=5), images, tmp_path, quiet=True)
    assert _contents(tmp_path) == before
    train(recipe, images, tmp_path, quiet=True)
    assert [line["iteration"] for line in _lines(tmp_path / "monitors.jsonl")] == [0, 6]


def test_a_finished_run_is_left_as_it_is(recipe, images, tmp_path):
    train(recipe, images, tmp_path, quiet=True)
    before = _contents(tmp_path)
    for iterations in (recipe.iterations, 3):
        train(dataclasses.replace(recipe, iterations=iterations), images, tmp_path, quiet=True)
    assert _contents(tmp_path) == before


def test_a_cut_checkpoint_is_set_aside_and_the_one_before_resumed(recipe, images, tmp_path, caplog):
    whole = _train(recipe, images, tmp_path / "whole")
    parts = tmp_path / "parts"
    train(dataclasses.replace(recipe, iterations=5), images, parts, quiet=True)
    assert list(checkpoints(parts)) == [3, 5]
    cut = checkpoints(parts)[5].read_bytes()[:5000]
    checkpoints(parts)[5].write_bytes(cut)
    (parts / "Thumbs.db").write_bytes(b"foreign")
    with caplog.at_level("INFO"):
        _assert_equal(whole, _train(recipe, images, parts))
    assert "checkpoint-0000005.pt is cut short" in caplog.text
    assert "resuming" in caplog.text
    assert "at iteration 3" in caplog.text
    assert (parts / "damaged-checkpoint-0000005.pt").read_bytes() == cut


def test_a_checkpoint_that_does_not_fit_is_named(recipe, images, tmp_path):
    saved = _train(dataclasses.replace(recipe, iterations=2), images, tmp_path)
    del saved["generator"]["norm.weight"]
    torch.save(saved, latest_checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"checkpoint-0000002\.pt does not hold the state of a run with its settings"):
        train(recipe, images, tmp_path, quiet=True)


def test_two_trainings_in_one_folder_are_refused(recipe, images, tmp_path):
    with (
        locked(tmp_path / "run"),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(BlockingIOError, match=r"run is being written by another process"),
    ):
        pool.submit(train, recipe, images, tmp_path / "run", quiet=True).result()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("recipe.json", "is no record of a run"), ("stats.jsonl", "holds stats.jsonl but no recipe")]
)
def test_foreign_files_of_a_run_s_names_are_refused(recipe, images, tmp_path, name, message):
    (tmp_path / name).write_text('{"flour": "500 g"}')
    with pytest.raises(ValueError, match=message):
        train(recipe, images, tmp_path, quiet=True)
    assert (tmp_path / name).read_text() == '{"flour": "500 g"}'


def test_a_run_of_a_version_with_a_decoder_goes_on_if_it_had_none(recipe, images, tmp_path):
    saved = _train(dataclasses.replace(recipe, iterations=2), images, tmp_path)
    path = latest_checkpoint(tmp_path)
    torch.save(saved | {"recipe": saved["recipe"] | {"reconstruction": 0.0}}, path)
    assert _train(recipe, images, tmp_path)["iteration"] == recipe.iterations
    saved["recipe"]["reconstruction"] = 1.0
    torch.save(saved, latest_checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"the recorded settings reconstruction are unknown"):
        train(dataclasses.replace(recipe, iterations=9), images, tmp_path, quiet=True)


def test_batches_of_one_image_are_no_divergence(recipe, images, tmp_path):
    one = dataclasses.replace(recipe, batch_size=1, negatives=0.0)
    train(one, images, tmp_path, quiet=True)
    lines = _lines(tmp_path / "stats.jsonl")
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert not {"real_spread", "fake_spread", "sample_variance"} & lines[0].keys()


def test_other_images_are_refused(recipe, images, tmp_path):
    run, others = tmp_path / "run", tmp_path / "others"
    train(dataclasses.replace(recipe, iterations=2), images, run, quiet=True)
    others.mkdir()
    for path in images.iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(others / path.name)
    with pytest.raises(ValueError, match="begun with other images; give the same --data"):
        train(recipe, others, run, quiet=True)
    with pytest.raises(ValueError, match="begun with other images; give the same --held-out"):
        train(recipe, images, run, held_out=others, quiet=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "least-squares", "head": "pooled", "gain": 1.0, "slope": 0.0},
        {"gamma": 0.1, "noise_std": 0.1},
        {"negatives": 0.0, "augmentation": "paper"},
        {"spectral_norm": False, "augmentation": "none"},
        {"image_size": 64, "augmentation": "flip"},
        {"r1": 1.0, "generator_steps": 2, "discriminator_steps": 2},
        {"r1": 1.0, "precision": "bfloat16"},
        {"precision": "float16"},
        {"loss": "logistic"},
        {"image_size": 64, "precision": "bfloat16"},
    ],
)
def test_every_setting_can_be_switched(recipe, images, tmp_path, changes):
    recipe = dataclasses.replace(recipe, iterations=2, **changes)
    saved = _train(recipe, images, tmp_path)
    fresh = State(recipe, torch.device("cpu"))
    for name in ("discriminator", "generator", "averaged_discriminator"):
        before, after = fresh.modules()[name].state_dict(), saved[name]
        assert any(not torch.equal(before[key], after[key]) for key in before), name
        assert all(value.isfinite().all() for value in after.values())


def test_a_run_keeps_the_precision_that_it_began_in(recipe, images, tmp_path, monkeypatch, caplog):
    recipe = dataclasses.replace(recipe, precision="auto", iterations=2)
    monkeypatch.setattr("afv_metric.train.settings.computes_bfloat16", lambda device: True)
    assert _train(recipe, images, tmp_path)["recipe"]["precision"] == "bfloat16"
    monkeypatch.setattr("afv_metric.train.settings.computes_bfloat16", lambda device: False)
    assert not caplog.messages
    longer = dataclasses.replace(recipe, iterations=3)
    assert _train(longer, images, tmp_path)["recipe"]["precision"] == "bfloat16"
    assert "cpu only imitates bfloat16" in caplog.text
    assert _train(recipe, images, tmp_path / "other")["recipe"]["precision"] == "float32"


def test_steps_are_counted(recipe, images, tmp_path):
    saved = _train(dataclasses.replace(recipe, generator_steps=2, discriminator_steps=3), images, tmp_path)
    steps = [
        next(iter(saved[f"{name}_optimizer"]["state"].values()))["step"] for name in ("generator", "discriminator")
    ]
    assert [int(step) for step in steps] == [2 * recipe.iterations, 3 * recipe.iterations]


def test_training_learns_to_tell_images_from_generated_ones(recipe, tmp_path):
    folder = tmp_path / "smooth"
    folder.mkdir()
    torch.manual_seed(0)
    for index in range(64):
        smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), size=(64, 64), mode="bicubic")[0]
        Image.fromarray((smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    short = {"iterations": 40, "log_interval": 1, "checkpoint_interval": 40, "batch_size": 16}
    recipe = dataclasses.replace(recipe, width=8, discriminator_rate=2e-3, tolerance=0.0, **short)
    train(recipe, folder, tmp_path / "run", quiet=True)
    lines = _lines(tmp_path / "run" / "stats.jsonl")
    margins = [line["real"] - line["fake"] for line in lines]
    assert abs(margins[0]) < 0.5
    assert margins[-1] > 1


def _failing_from(iteration, monkeypatch, times=1):
    """Let the loss be nan at an iteration, the first few times that it is reached."""
    iterate, failures = loop.iterate, []

    def failing(state, *arguments):
        statistics = iterate(state, *arguments)
        if state.iteration == iteration - 1 and len(failures) < times:
            failures.append(state.rate_factor)
            statistics["loss_d"] = torch.tensor(torch.nan)
        return statistics

    monkeypatch.setattr(loop, "iterate", failing)
    return failures


def test_a_number_that_is_not_finite_stops_the_run_with_the_checkpoint_kept(recipe, images, tmp_path, monkeypatch):
    _failing_from(4, monkeypatch)
    with pytest.raises(DivergenceError, match="at iteration 4 loss_d is nan.*checkpoint-0000003.pt is intact"):
        train(recipe, images, tmp_path, quiet=True)
    assert max(checkpoints(tmp_path)) == 3


def test_weights_that_are_not_finite_are_never_saved(recipe, images, tmp_path, monkeypatch):
    iterate = loop.iterate

    def breaking(state, *arguments):
        statistics = iterate(state, *arguments)
        with torch.no_grad():
            state.generator.norm.weight[0] = torch.inf
        return statistics

    monkeypatch.setattr(loop, "iterate", breaking)
    with pytest.raises(DivergenceError, match="weights are not finite.*no checkpoint from before"):
        train(dataclasses.replace(recipe, log_interval=100), images, tmp_path, quiet=True)
    assert not checkpoints(tmp_path)


def test_rolling_back_lowers_the_rates_and_goes_on(recipe, images, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, checkpoint_interval=1, milestone_interval=100)
    failures = _failing_from(4, monkeypatch, times=2)
    saved = _train(recipe, images, tmp_path, on_divergence="rollback")
    assert failures == [1.0, 0.5]
    assert (saved["iteration"], saved["rate_factor"]) == (6, 0.25)
    assert saved["discriminator_optimizer"]["param_groups"][0]["lr"] == recipe.discriminator_rate / 4
    assert [line["iteration"] for line in _lines(tmp_path / "stats.jsonl")] == [2, 4, 6]


def test_what_to_do_when_training_fails_must_be_known(recipe, images, tmp_path):
    with pytest.raises(ValueError, match='must be "stop" or "rollback", got \'roll-back\''):
        train(recipe, images, tmp_path, on_divergence="roll-back")


def test_a_kill_does_not_bring_the_old_rates_back(recipe, images, tmp_path, monkeypatch):
    recipe = dataclasses.replace(recipe, checkpoint_interval=1, milestone_interval=100)
    _failing_from(4, monkeypatch)
    failing = loop.iterate

    def killed(state, *arguments):
        if state.rate_factor < 1:
            raise KeyboardInterrupt
        return failing(state, *arguments)

    monkeypatch.setattr(loop, "iterate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, images, tmp_path, quiet=True, on_divergence="rollback")
    saved = load_checkpoint(latest_checkpoint(tmp_path))
    assert (saved["iteration"], saved["rate_factor"]) == (2, 0.5)


def test_rolling_back_for_ever_is_not_tried(recipe, images, tmp_path, monkeypatch):
    failures = _failing_from(4, monkeypatch, times=100)
    with pytest.raises(DivergenceError, match="loss_d is nan"):
        train(recipe, images, tmp_path, quiet=True, on_divergence="rollback")
    assert len(failures) == 6


def test_a_discriminator_that_cannot_learn_is_noticed(recipe, images, tmp_path):
    """Deliberately broken: with next to no gain all logits are the same, whatever D does."""
    broken = dataclasses.replace(recipe, gain=1e-9, log_interval=1, iterations=20)
    with pytest.raises(DivergenceError, match="the discriminator has collapsed"):
        train(broken, images, tmp_path, quiet=True)


def test_a_generator_that_ignores_its_latents_is_noticed(recipe, images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "afv_metric.networks.Generator.sample_latents",
        lambda self, count, generator=None: torch.zeros(count, self.config.latent_size),
    )
    with pytest.raises(DivergenceError, match="generator has collapsed"):
        train(dataclasses.replace(recipe, iterations=20, log_interval=1), images, tmp_path, quiet=True)


def test_a_run_starts_from_a_bundle(recipe, images, tmp_path, bundle):
    recipe = dataclasses.replace(recipe, iterations=1, discriminator_rate=1e-30, generator_rate=1e-30)
    saved = _train(recipe, images, tmp_path, init=bundle)
    for name, value in bundle.generator.named_parameters():
        torch.testing.assert_close(saved["generator"][name], value, rtol=0, atol=1e-12, msg=name)
    assert (saved["init"], saved["before"]) == (f"{bundle.name} {bundle.hash}", bundle.training)
    train(dataclasses.replace(recipe, iterations=2), images, tmp_path, quiet=True)  # goes on without being told of it
    exported = export_run(tmp_path, "same", samples=10, quiet=True)
    assert exported.training["before"] == bundle.training
    for (name, value), (_, expected) in zip(
        exported.discriminator.named_parameters(), bundle.discriminator.named_parameters(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=0.1, atol=0.1, msg=name)


def test_the_random_network_is_the_run_s_initialisation(recipe, images, tmp_path):
    train(dataclasses.replace(recipe, iterations=2), images, tmp_path, quiet=True)
    trained = export_run(tmp_path, "trained", samples=10, quiet=True)
    untrained = random_twin(trained)
    expected = State(recipe, torch.device("cpu")).averaged_discriminator
    for name, value in expected.state_dict().items():
        assert torch.equal(untrained.discriminator.state_dict()[name], value)
    assert untrained.levels == trained.levels
    other = dataclasses.asdict(dataclasses.replace(recipe, seed=1))
    chained = dataclasses.replace(trained, training={"recipe": other, "before": trained.training})
    again = random_twin(chained).discriminator.state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.state_dict().items())


def test_a_full_disk_is_reported_and_breaks_nothing(recipe, images, tmp_path, monkeypatch):
    train(dataclasses.replace(recipe, iterations=3), images, tmp_path, quiet=True)
    kept = checkpoints(tmp_path)[3].read_bytes()

    def full(state, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, images, tmp_path, quiet=True)
    assert checkpoints(tmp_path)[3].read_bytes() == kept
    assert not list(tmp_path.glob(".checkpoint-*"))
    assert list(checkpoints(tmp_path)) == [3]
