"""What memory there is: what is free, within control groups of either version and the limits of the process."""

import subprocess
import sys

import pytest
import torch

from cryofm_sampling import SettingError, Tiled, check_memory
from cryofm_sampling.runs import memory

CPU = torch.device("cpu")
TILED = Tiled(lambda x, t: -x, tile=64, overlap=16)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A /proc and a /sys/fs/cgroup of one's own: 8 GiB free, 1 GiB resident."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    (proc / "self" / "status").write_text("VmSize: 4194304 kB\nVmRSS: 1048576 kB\nVmData: 2097152 kB\n")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUPS", groups)
    monkeypatch.setattr(memory, "_within_limits", lambda: iter(()))

    def group(line, folder, **files):
        (proc / "self" / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
        (groups / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (groups / folder / name.replace("__", ".")).write_text(f"{text}\n")

    return group


def available():
    return memory._available_memory(CPU) / 2**30


def test_what_is_free_and_what_one_has(machine):
    assert available() == 9


def test_control_groups_of_version_2(machine):
    machine("0::/job/step", "job/step", memory__max="max", memory__current=5)
    assert available() == 9
    stat = f"anon 7\ninactive_file {2**30}"
    machine("0::/job/step", "job", memory__max=4 * 2**30, memory__current=3 * 2**30, memory__stat=stat)
    assert available() == 1 + 2  # a gibibyte of what is used would be given back


def test_control_groups_of_version_1(machine):
    files = {"memory__limit_in_bytes": 6 * 2**30, "memory__usage_in_bytes": 3 * 2**30}
    machine("4:memory,hugetlb:/batch", "memory/batch", **files)
    assert available() == 1 + 3


def test_a_container_whose_path_is_not_to_be_seen(machine):
    machine("0::/outside/of/here", ".", memory__max=2**30, memory__current=0)
    assert available() == 1 + 1


@pytest.mark.skipif(not memory._PROC.joinpath("self/status").exists(), reason="no /proc here")
def test_limits_of_the_process():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    had = memory._status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (had + 2**31, before[1]))
    try:
        assert memory._available_memory(CPU) - memory._now(CPU) == pytest.approx(2**31, rel=0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_would_fit_is_told_and_fits(machine):
    with pytest.raises(
        SettingError, match=r"needs about .* GiB on cpu, and there are 9\.00; crop the maps to a cube of"
    ) as told:
        check_memory((600, 600, 600), TILED, device=CPU)
    side = int(str(told.value).split("cube of ")[1].split(",")[0])
    check_memory((side, side, side), TILED, device=CPU)
    with pytest.raises(SettingError):
        check_memory((side + 20,) * 3, TILED, device=CPU)


def test_samples_and_the_maps_own_grid_cost_more(machine):
    plain = check_memory((64, 64, 64), TILED, device=CPU).needed
    for more in ({"samples": 8}, {"own": (128, 128, 128)}):
        assert check_memory((64, 64, 64), TILED, device=CPU, **more).needed > plain


class Wide(torch.nn.Module):
    """A network of so many channels, which takes boxes of 24 voxels and more."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = torch.nn.Conv3d(1, width, 1), torch.nn.Conv3d(width, 1, 1)
        self.idle = torch.nn.Parameter(torch.zeros(10**6))

    def forward(self, x, t):
        assert min(x.shape) > 48
        y = (self.first(x[None]) + self.idle.view(-1, 10).sum()).square()
        return self.last(y)[0]


@pytest.mark.slow
def test_what_a_network_takes_is_measured_with_it():
    x = 4  # bytes; one volume goes in, and of so many channels there are two at once
    for width in (2, 50):
        found = memory._alive(Wide(width).float(), 96, CPU, gradients=False)
        assert found == pytest.approx(2 * width * x + x, rel=0.1, abs=4 * x)
        assert memory._alive(Wide(width).float(), 96, CPU, gradients=True) > 2.5 * width * x
    tight, wide = (Tiled(Wide(width).float(), tile=96, overlap=16) for width in (2, 200))
    needed = [check_memory((96, 96, 96), tiled, device=CPU).needed for tiled in (tight, wide)]
    assert needed[1] - needed[0] == pytest.approx(1.25 * 0.65 * 2 * 198 * x * 96**3, rel=0.2)


@pytest.mark.slow
def test_asking_does_not_load_the_compiler():
    """Torch's, which would take longer than all that is asked for."""
    program = (
        "import sys, torch; from cryofm_sampling import Tiled, check_memory; "
        "check_memory((8, 8, 8), Tiled(lambda x, t: -x, tile=64, overlap=16), device=torch.device('cpu')); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
