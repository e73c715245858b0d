"""Processes that share tiles or samples get what one process gets."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
from cryofm_sampling import Checkpoint, Draw, Guided, PlugAndPlay, SettingError, Tiled, calibrate, restore, spread
from cryofm_sampling.testing import GaussianPrior

BOX = (9, 5, 12)  # 4 tiles of 8³ that overlap by half

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs gloo and files"),
    pytest.mark.slow,
]


class Convolutions(nn.Module):
    """A network that sees beyond a voxel, and is not linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv3d(4, 1, 3, padding=1)).float()

    def forward(self, x, t):
        return self.body(x.unsqueeze(-4)).squeeze(-4) * t.reshape((*t.shape, 1, 1, 1)) + x


class Pull:
    """White noise of variance 0.1 on data that are a ramp."""

    def __init__(self):
        self.y = torch.linspace(-1, 1, 9 * 5 * 12).reshape(BOX)

    def log_prob(self, x):
        return -5 * (x - self.y).square().sum((-3, -2, -1))


def volumes(seed=0):
    return torch.randn(2, *BOX, generator=torch.Generator().manual_seed(seed))


def velocity_and_gradients(group):
    """A tiled field, and two gradients through it: 8 tiles, which 3 ranks cannot share evenly."""
    x = volumes().requires_grad_()
    v = Tiled(Convolutions(), 8, 4, group=group)(x, torch.tensor([0.5, 0.25]))
    first, second = (torch.autograd.grad(v, x, w, retain_graph=True)[0] for w in (v.detach(), torch.ones_like(v)))
    return v.detach(), first, second


def guided(group, checkpoint=None, callback=None):
    """Alg. 1 through tiles."""
    run = {"shape": BOX, "generator": torch.Generator().manual_seed(0), "checkpoint": checkpoint, "callback": callback}
    return Guided(steps=4, guidance="paper", max_push=0.1)(Tiled(Convolutions(), 8, 4, group=group), Pull(), **run).x


def samples(group):
    run = {"shape": BOX, "generator": torch.Generator().manual_seed(0), "sampler": Guided(steps=3)}
    return restore(GaussianPrior(1.0), Pull(), group=group, estimate="samples", samples=4, **run)


def spread_jobs(group):
    """What this rank did of 4 jobs, and what it was told of all."""
    done = []

    def job(i):
        done.append(i)
        return Draw(torch.full((2,), float(i)), i, {"job": i})

    draws = spread([lambda i=i: job(i) for i in range(4)], group)
    return done, [(float(draw.x[0]), draw.nfe, draw.settings["job"]) for draw in draws]


def interrupted_and_resumed(group, folder):
    """Every rank has a folder of its own, as on machines without a common disk; only the first has a checkpoint."""
    path = Path(folder, f"of-{dist.get_rank()}-{dist.get_world_size(group)}", "run")
    path.parent.mkdir()
    checkpoint = Checkpoint(path, 0, group=group)

    def stop(step, total, x_0):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guided(group, checkpoint, stop)
    assert path.exists() == (dist.get_rank() == 0)
    resumed = guided(group, checkpoint)
    assert not path.exists()
    return resumed


def restored_after_a_kill(group, folder, sampler, shared, tiled=False, **options):
    """By `restore`, on a disk that all ranks have; `shared`: whether the caller thought of the checkpoint's group."""
    path = Path(folder, f"restored-{dist.get_world_size(group)}-{type(sampler).__name__}-{shared}-{tiled}")
    prior = Tiled(GaussianPrior(1.0), 8, 4, group=group) if tiled else GaussianPrior(1.0)
    checkpoint = Checkpoint(path, 0, group=group if shared else None)
    run = {"shape": BOX, "sampler": sampler, "group": None if tiled else group, "checkpoint": checkpoint, **options}
    data = gaussian_likelihood(Identity(), WhiteNoise(0.5), Pull().y)

    def stop(step, total, x_0):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(prior, data, generator=torch.Generator().manual_seed(0), callback=stop, **run)
    dist.barrier(group)  # the kill is of all
    resumed = restore(prior, data, generator=torch.Generator().manual_seed(0), **run).x
    whole = restore(prior, data, generator=torch.Generator().manual_seed(0), **run | {"checkpoint": None}).x
    dist.barrier(group)
    left = sorted(other.name for other in path.parent.glob(f"{path.name}*"))
    return torch.equal(resumed, whole), left


def worker(rank, folder):
    """Process `rank` of 3; the first two form a group as well, and the first alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3)
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3)}
    found = {}
    for size in range(rank + 1, 4):
        group = groups[size]
        results = velocity_and_gradients(group), guided(group), samples(group).x, interrupted_and_resumed(group, folder)
        kills = []
        for shared in (False, True):
            kills += [
                restored_after_a_kill(group, folder, PlugAndPlay(), shared),
                restored_after_a_kill(group, folder, PlugAndPlay(), shared, tiled=True),
                restored_after_a_kill(group, folder, Guided(steps=4), shared, estimate="samples", samples=4),
            ]
        found[size] = (*results, spread_jobs(group), kills)
    group = groups[3]
    with pytest.raises(SettingError, match="hold different volumes"):
        Tiled(Convolutions(), 8, 4, group=group)(volumes(seed=rank), torch.tensor(0.5))
    one_differs = torch.stack([volumes()[0], volumes(seed=rank)[1]])
    with pytest.raises(SettingError, match="hold different volumes"):
        Tiled(Convolutions(), 8, 4, group=group)(one_differs, torch.tensor(0.5))
    masked = volumes(seed=rank)
    masked[..., :4, :, :] = 0  # so that they agree where they begin
    with pytest.raises(SettingError, match="hold different volumes"):
        Tiled(Convolutions(), 8, 4, group=group)(masked, torch.tensor(0.5))
    tiled = Tiled(GaussianPrior(1.0), 8, 4, group=group)
    for prior in (tiled, calibrate(tiled, volumes(), generator=torch.Generator(), times=[0.5])):
        with pytest.raises(SettingError, match="share either samples"):
            restore(prior, Pull(), shape=BOX, generator=torch.Generator(), group=group)
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of 3 processes has, by rank and size of the group."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(3)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / str(rank)) for rank in range(3)]


@pytest.fixture(autouse=True)
def float64():
    """As the other processes have it; and one thread, as rounding depends on their number."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.slow
def test_tiles_are_those_of_one_process(found, size):
    v, *gradients = velocity_and_gradients(None)
    ranks = [found[rank][size][0] for rank in range(size)]
    for their_v, *their_gradients in ranks:
        assert torch.equal(their_v, v)
        for theirs, ours in zip(their_gradients, gradients, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    for _, *others in ranks[1:]:  # to the bit, so that ranks cannot drift apart
        assert all(torch.equal(a, b) for a, b in zip(others, ranks[0][1:], strict=True))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_guided_sampling_through_tiles(found, size):
    alone = guided(None)
    for rank in range(size):
        _, x, _, resumed, *_ = found[rank][size]
        torch.testing.assert_close(x, alone, rtol=1e-4, atol=1e-4)
        assert torch.equal(x, found[0][size][1])
        assert torch.equal(resumed, x)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_samples_are_those_of_one_process(found, size):
    alone = samples(None)
    for rank in range(size):
        assert torch.equal(found[rank][size][2], alone.x)
        done, told = found[rank][size][4]
        assert done == list(range(rank, 4, size))
        assert told == [(i, i, i) for i in range(4)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_checkpoints_of_ranks_on_a_common_disk(found, size):
    for rank in range(size):
        assert found[rank][size][5] == [(True, [])] * 6


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
