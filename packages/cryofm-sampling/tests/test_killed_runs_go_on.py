"""A run that was killed goes on from its checkpoint and ends with the bits of one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cryofm_ops import FourierGaussian, Identity, SpectralNoise, WhiteNoise, gaussian_likelihood, rfft
from cryofm_sampling import (
    CapabilityError,
    Checkpoint,
    CheckpointError,
    Flow,
    Guided,
    Inpainting,
    PlugAndPlay,
    PosteriorFlow,
    Renoising,
    restore,
)
from cryofm_sampling.testing import GaussianPrior

BOX = (5, 6, 4)
PRIOR = GaussianPrior(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
SAMPLERS = [  # of six steps
    Guided(steps=6),
    Guided(steps=6, guidance="paper", max_push=0.1),
    Inpainting(steps=6),
    PlugAndPlay(iterations=6),
    PosteriorFlow(4, PlugAndPlay(iterations=2)),
    Renoising((0.8, 0.7, 0.6, 0.5, 0.4, 0.3), chains=2),
]


class Killed(Exception):
    pass


def killer(after):
    def callback(step, total, x_0):
        if step == after:
            raise Killed

    return callback


def data(shape=BOX, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def likelihood(seed=0):
    return gaussian_likelihood(Identity(), SpectralNoise(torch.tensor([0.2, 0.5, 2.0])), data(seed=seed))


class OnlyLogProb:
    def __init__(self, y):
        self.y = y

    def log_prob(self, x):
        return -0.5 * (x - self.y).square().sum((-3, -2, -1))


class OnlyCondition:
    def __init__(self, y):
        self.y = y

    def condition(self, mean, variance):
        return FourierGaussian(torch.ones(5, 6, 3), rfft(self.y), BOX).condition(mean, variance)


def run(sampler, data, shape=(2, *BOX), seed=3, prior=PRIOR, **options):
    return sampler(prior, data, shape=shape, generator=torch.Generator().manual_seed(seed), **options).x


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("after", [1, 5, 6])
def test_resumed_is_uninterrupted(sampler, after, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)
    with pytest.raises(Killed):
        run(sampler, likelihood(), checkpoint=checkpoint, callback=killer(after))
    seen = []
    x = run(sampler, likelihood(), checkpoint=checkpoint, callback=lambda step, total, x_0: seen.append(step))
    assert torch.equal(x, run(sampler, likelihood()))
    assert seen[-1] == 6
    assert len(seen) == 6 - min(after, 5)  # nothing is saved after the last step
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("integrator", ["euler", "heun"])
def test_samples_of_the_prior_go_on(integrator, tmp_path):
    def draw(seed=3, **options):
        generator = torch.Generator().manual_seed(seed)
        return Flow(6, integrator)(PRIOR, shape=(2, *BOX), generator=generator, **options).x

    checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)
    with pytest.raises(Killed):
        draw(checkpoint=checkpoint, callback=killer(4))
    with pytest.raises(CheckpointError, match="seed"):
        draw(4, checkpoint=checkpoint)
    seen = []
    x = draw(checkpoint=checkpoint, callback=lambda step, total, x: seen.append(step))
    assert torch.equal(x, draw())
    assert seen == [5, 6]
    assert list(tmp_path.iterdir()) == []


def test_single_precision_and_data_without_a_spectrum(tmp_path):
    sampler, checkpoint = Guided(steps=3), Checkpoint(tmp_path / "run", 0)
    prior = GaussianPrior(torch.tensor([3.0, 1.0], dtype=torch.float32))
    y = OnlyLogProb(data().float())
    torch.set_default_dtype(torch.float32)
    with pytest.raises(Killed):
        run(sampler, y, prior=prior, checkpoint=checkpoint, callback=killer(2))
    x = run(sampler, y, prior=prior, checkpoint=checkpoint)
    assert x.dtype == torch.float32
    assert torch.equal(x, run(sampler, y, prior=prior))


def test_data_that_have_no_log_prob(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(PlugAndPlay(4), OnlyCondition(data()), checkpoint=checkpoint, callback=killer(2))
    with pytest.raises(CheckpointError, match="another likelihood"):
        run(PlugAndPlay(4), OnlyCondition(data(seed=1)), checkpoint=checkpoint)
    x = run(PlugAndPlay(4), OnlyCondition(data()), checkpoint=checkpoint)
    assert torch.equal(x, run(PlugAndPlay(4), OnlyCondition(data())))


def test_nothing_is_written_before_its_time(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", every_seconds=3600)
    with pytest.raises(Killed):
        run(Guided(steps=3), likelihood(), checkpoint=checkpoint, callback=killer(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: {"sampler": Guided(steps=7)}, "steps: 6 there, 7 here"),
        (lambda: {"sampler": Guided(steps=6, guidance="paper")}, "guidance: gaussian there, paper here"),
        (lambda: {"sampler": PlugAndPlay()}, "sampler: Guided there, PlugAndPlay here"),
        (lambda: {"seed": 4}, "seed: [0-9a-f]{8} there, [0-9a-f]{8} here"),
        (lambda: {"shape": BOX}, r"shape: \[2, 5, 6, 4\] there, \[5, 6, 4\] here"),
        (lambda: {"data": likelihood(seed=1)}, "another likelihood"),
        (lambda: {"data": OnlyLogProb(data())}, "another likelihood"),
        (
            lambda: {"prior": GaussianPrior(torch.tensor([3.0, 1.0, 0.21], dtype=torch.float64))},
            "another velocity field",
        ),
    ],
)
def test_another_run_is_refused(change, said, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    asked = {"sampler": Guided(steps=6), "data": likelihood()}
    with pytest.raises(Killed):
        run(**asked, checkpoint=checkpoint, callback=killer(2))
    with pytest.raises(CheckpointError, match=f"run belongs to another run .*{said}.*remove it to start anew"):
        run(**(asked | change()), checkpoint=checkpoint)
    run(**asked, checkpoint=checkpoint)  # the refusal left it as it was


@pytest.mark.parametrize("times", [(0.8, 0.5, 0.3, 0.2), (0.8003, 0.5003, 0.3), (0.8, 0.5, 0.2)])
def test_numbers_are_compared_exactly_and_named(times, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(Renoising((0.8, 0.5, 0.3)), likelihood(), checkpoint=checkpoint, callback=killer(2))
    with pytest.raises(CheckpointError) as refusal:
        run(Renoising(times), likelihood(), checkpoint=checkpoint)
    assert f"(times: [0.8, 0.5, 0.3] there, {list(times)} here)" in str(refusal.value)


def test_numbers_of_numpy_are_numbers(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(PlugAndPlay(np.int64(4), np.float64(0.5)), likelihood(), checkpoint=checkpoint, callback=killer(2))
    x = run(PlugAndPlay(4, 0.5), likelihood(), checkpoint=checkpoint)
    assert torch.equal(x, run(PlugAndPlay(4, 0.5), likelihood()))


def white(std):
    return lambda y: gaussian_likelihood(Identity(), WhiteNoise(std), y)


@pytest.mark.parametrize(
    ("make", "shape", "step"), [(OnlyLogProb, BOX, 0.5), (white(1.0), BOX, 0.5), (white(0.3), (48, 48, 48), 0.3)]
)
def test_one_voxel_of_the_data_is_enough_to_be_refused(make, shape, step, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(Guided(steps=2), make(data(shape)), shape, checkpoint=checkpoint, callback=killer(1))
    other = data(shape)
    other[2, 3, 1] += step
    with pytest.raises(CheckpointError, match=r"\(another likelihood\)"):
        run(Guided(steps=2), make(other), shape, checkpoint=checkpoint)


@pytest.mark.parametrize("std", [0.03, 1e-3, 0.0])
def test_other_data_are_refused_however_precise(std, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(PlugAndPlay(), white(std)(data()), checkpoint=checkpoint, callback=killer(1))
    with pytest.raises(CheckpointError, match=r"\(another likelihood\)"):
        run(PlugAndPlay(), white(std)(data(seed=1)), checkpoint=checkpoint)


@pytest.mark.parametrize("make", [OnlyLogProb, white(0.3)])
def test_rounding_of_the_data_is_let_pass(make, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(Guided(steps=3), make(data()), checkpoint=checkpoint, callback=killer(1))
    run(Guided(steps=3), make(data() * (1 + 1e-7 * data(seed=1))), checkpoint=checkpoint)


class Statistics:
    """The prior, with statistics that may be others."""

    def __init__(self, **other):
        self.signal_power, self.denoising_error = PRIOR.signal_power, PRIOR.denoising_error
        self.__dict__.update(other)

    def __call__(self, x, t):
        return PRIOR(x, t)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signal_power", 0.01 * PRIOR.signal_power),
        ("denoising_error", PRIOR.denoising_error * torch.tensor([1.0, 0.9])),
        ("denoising_spectrum", torch.tensor([[0.3, 0.1, 0.1], [0.6, 0.2, 0.2]])),
    ],
)
def test_other_statistics_of_the_prior_are_refused(name, value, tmp_path):
    checkpoint, other = Checkpoint(tmp_path / "run", 0), Statistics(**{name: value})
    for first, second in ((Statistics(), other), (other, Statistics())):
        with pytest.raises(Killed):
            run(PlugAndPlay(), likelihood(), prior=first, checkpoint=checkpoint, callback=killer(1))
        with pytest.raises(CheckpointError, match=rf"\(another {name}\)"):
            run(PlugAndPlay(), likelihood(), prior=second, checkpoint=checkpoint)
        checkpoint.remove()


def test_a_prior_that_is_undefined_where_no_step_asks_goes_on(tmp_path):
    def prior(x, t):
        return torch.where(t == 0.5, torch.nan, PRIOR(x, t))

    checkpoint, sampler = Checkpoint(tmp_path / "run", 0), Guided(steps=3, guidance="paper")
    with pytest.raises(Killed):
        run(sampler, OnlyLogProb(data()), prior=prior, checkpoint=checkpoint, callback=killer(2))
    x = run(sampler, OnlyLogProb(data()), prior=prior, checkpoint=checkpoint)
    assert torch.equal(x, run(sampler, OnlyLogProb(data()), prior=prior))


def test_a_prior_is_shown_no_other_shape_for_a_checkpoint(tmp_path):
    shapes = set()

    class Watched(Statistics):
        def __call__(self, x, t):
            shapes.add(tuple(x.shape))
            return super().__call__(x, t)

    cube = (4, 4, 4)
    run(PlugAndPlay(2), white(1.0)(data(cube)), cube, prior=Watched(), checkpoint=Checkpoint(tmp_path / "a"))
    assert shapes == {(1, *cube)}


@pytest.mark.parametrize("path", ["", "missing/run"])
def test_a_path_that_cannot_be_written_is_refused_before_the_first_step(path, tmp_path):
    seen = []
    with pytest.raises(CheckpointError, match="it is a folder, or in a folder that does not exist"):
        run(
            Guided(steps=2),
            likelihood(),
            checkpoint=Checkpoint(tmp_path / path),
            callback=lambda step, total, x_0: seen.append(step),
        )
    assert seen == []


@pytest.mark.parametrize("lost", ["state", "stream.0"])
def test_a_checkpoint_that_lacks_a_part_is_refused(lost, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        run(Guided(steps=3), likelihood(), checkpoint=checkpoint, callback=killer(2))
    tensors = load_file(checkpoint.path)
    del tensors[lost]
    save_file(tensors, checkpoint.path)
    with pytest.raises(CheckpointError, match="is no checkpoint of a sampler"):
        run(Guided(steps=3), likelihood(), checkpoint=checkpoint)


def test_a_header_that_is_a_list_is_refused(tmp_path):
    save_file({"run": torch.tensor(list(b"[1]"), dtype=torch.uint8)}, tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no checkpoint of a sampler"):
        run(Guided(steps=6), likelihood(), checkpoint=Checkpoint(tmp_path / "run"))


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    header = json.dumps(
        {"step": 1, "fingerprint": {"sampler": "Guided", "steps": 6, "likelihood": [1.0, 0.5]}}
    ).encode()
    tensors = {"state": torch.zeros(BOX), "run": torch.tensor(list(header), dtype=torch.uint8)}
    save_file(tensors, tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no checkpoint of a sampler"):
        run(Guided(steps=6), likelihood(), checkpoint=Checkpoint(tmp_path / "run"))


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_another_file_is_refused(content, tmp_path):
    path = tmp_path / "run"
    if content is None:
        save_file({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no checkpoint of a sampler"):
        run(Guided(steps=6), likelihood(), checkpoint=Checkpoint(path))
    assert path.exists()


@pytest.mark.parametrize("estimate", ["samples", "mean"])
def test_finished_samples_are_not_drawn_again(estimate, tmp_path):
    def samples(**options):
        generator = torch.Generator().manual_seed(0)
        sampler = Guided(steps=4)
        asked = {"estimate": estimate, "samples": 3, "sampler": sampler, "generator": generator, "shape": BOX}
        return restore(PRIOR, likelihood(), **asked, **options).x

    checkpoint = Checkpoint(tmp_path / "run.safetensors", 0)
    steps = 0

    def killer_in_the_second(step, total, x_0):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise Killed

    with pytest.raises(Killed):
        samples(checkpoint=checkpoint, callback=killer_in_the_second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0.safetensors", "run-1.safetensors"]
    seen = []
    x = samples(checkpoint=checkpoint, callback=lambda step, total, x_0: seen.append(step))
    assert seen == [3, 4, 1, 2, 3, 4]
    assert torch.equal(x, samples())
    assert list(tmp_path.iterdir()) == []


def test_parts_of_samples_that_are_no_longer_asked_for_are_removed(tmp_path):
    def samples(number, **options):
        generator, checkpoint = torch.Generator().manual_seed(0), Checkpoint(tmp_path / "run", 0)
        asked = {"estimate": "samples", "samples": number, "sampler": Guided(steps=2), "generator": generator}
        return restore(PRIOR, likelihood(), shape=BOX, checkpoint=checkpoint, **asked, **options).x

    seen = []

    def killer_in_the_third(step, total, x_0):
        seen.append(step)
        if len(seen) == 6:
            raise Killed

    with pytest.raises(Killed):
        samples(3, callback=killer_in_the_third)
    assert (tmp_path / "run-2").exists()
    samples(2)
    assert list(tmp_path.iterdir()) == []


def test_the_mean_in_one_run(tmp_path):
    def mean(**options):
        generator = torch.Generator().manual_seed(0)
        return restore(PRIOR, likelihood(), shape=BOX, generator=generator, **options).x

    checkpoint = Checkpoint(tmp_path / "run", 0)
    with pytest.raises(Killed):
        mean(checkpoint=checkpoint, callback=killer(1))
    assert checkpoint.path.exists()
    assert torch.equal(mean(checkpoint=checkpoint), mean())
    assert list(tmp_path.iterdir()) == []


@attrs.frozen
class StrangersSampler:
    def __call__(self, velocity, likelihood, /, *, shape, generator, callback=None):
        return Guided(steps=2)(velocity, likelihood, shape=shape, generator=generator)


def test_a_sampler_that_takes_no_checkpoint_is_named(tmp_path):
    asked = {"shape": BOX, "generator": torch.Generator(), "sampler": StrangersSampler(), "samples": 1}
    restore(PRIOR, likelihood(), **asked)
    with pytest.raises(CapabilityError, match="StrangersSampler takes no checkpoint="):
        restore(PRIOR, likelihood(), checkpoint=Checkpoint(tmp_path / "run"), **asked)


def long_run(checkpoint, callback=None):
    torch.set_num_threads(1)
    return run(PlugAndPlay(iterations=200), likelihood(), checkpoint=checkpoint, callback=callback)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_process_that_was_killed(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", 0)
    process = subprocess.Popen([sys.executable, __file__, str(checkpoint.path)])
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)  # into some step, or some write
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    threads, seen = torch.get_num_threads(), []
    x = long_run(checkpoint, lambda step, total, x_0: seen.append(step))
    assert seen[0] > 1
    assert torch.equal(x, long_run(None))
    torch.set_num_threads(threads)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    long_run(Checkpoint(Path(sys.argv[1]), 0), lambda step, total, x_0: time.sleep(0.05))


def test_a_name_that_no_disk_takes_is_refused_before_the_first_step(tmp_path):
    seen = []
    checkpoint = Checkpoint(tmp_path / ("r" * 250))  # the file beside it has a longer name
    with pytest.raises(CheckpointError, match="cannot be written"):
        run(Guided(steps=2), likelihood(), checkpoint=checkpoint, callback=lambda *_: seen.append(1))
    assert seen == []
    assert list(tmp_path.iterdir()) == []
