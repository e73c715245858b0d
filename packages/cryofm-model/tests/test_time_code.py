"""The time code in every precision, bit by bit, and what low precision makes of it."""

from collections.abc import Callable

import attrs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cryofm_model import Hourglass, HourglassConfig
from cryofm_model.networks.hourglass_config import TimeCode

CONFIG = HourglassConfig(widths=(12,), depths=(1,), patch=2, head_width=12, conditioning=4)


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16  # to nearest, ties to even
    return rounded.astype(np.uint32).view(np.float32)


ROUNDING: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "fp32": lambda x: x.astype(np.float32),
    "bf16": to_bf16,
    "fp16": lambda x: x.astype(np.float16).astype(np.float32),
}


@pytest.mark.parametrize("time_code", ["fp32", "bf16", "fp16"])
def test_time_code_rounds_as_its_precision_does(time_code: TimeCode) -> None:
    network = Hourglass(attrs.evolve(CONFIG, conditioning=512, time_code=time_code))
    r = ROUNDING[time_code]
    tau = np.array([0, 1, 50, 237, 1000], np.float32)
    weight = network.time_emb.weight.numpy()
    f = r(r(np.float32(2 * np.pi) * tau)[:, None] * r(weight[:, 0]))
    expected = np.concatenate([r(np.cos(f)), r(np.sin(f))], -1)
    found = network.time_emb(torch.from_numpy(tau / 1000))
    with torch.autocast("cpu", torch.bfloat16):  # the precision of everything else does not matter
        assert torch.equal(network.time_emb(torch.from_numpy(tau / 1000)), found)
    assert torch.equal(network.double().time_emb(torch.from_numpy(tau.astype(np.float64) / 1000)), found)
    assert np.array_equal(r(found.numpy()), found.numpy())  # nothing finer than the precision
    # one unit in the last place for the cosines themselves
    ulp = {"fp32": 1e-7, "bf16": 2**-8, "fp16": 2**-11}[time_code]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1.01 * ulp)
    assert np.mean(found.numpy() != expected) < (0.2 if time_code == "fp32" else 0.01)


@pytest.mark.usefixtures("single")
def test_low_precision_makes_another_time_code() -> None:
    """The precision trap: similarity of the bf16 code to the fp32 code at τ = 50, 250, 1000."""
    tau = torch.tensor([50.0, 250.0, 1000.0])
    codes = [
        Hourglass(attrs.evolve(CONFIG, conditioning=4096, time_code=code)).time_emb(tau / 1000)
        for code in ("fp32", "bf16")
    ]
    similarity = torch.cosine_similarity(codes[0], codes[1])
    torch.testing.assert_close(similarity, torch.tensor([0.82, 0.19, 0.02]), rtol=0, atol=0.06)


def test_time_is_rounded_to_a_thousandth() -> None:
    features = Hourglass(CONFIG).time_emb
    at = {t: features(torch.tensor([t])) for t in (0.3, 0.3004, 0.3006)}
    assert torch.equal(at[0.3], at[0.3004])
    assert not torch.allclose(at[0.3], at[0.3006])
