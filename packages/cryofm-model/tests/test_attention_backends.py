"""The backends agree, each is chosen where it can work, and none gives a wrong second derivative silently."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cryofm_model import CryoFMError, attention_backend, neighborhood_attention_3d
from cryofm_model.attention import neighborhood
from cryofm_model.attention.flex import block_mask, flex_neighborhood_attention, flex_supports
from cryofm_model.attention.fused import natten_attention, natten_supports
from cryofm_model.attention.tiled import tiled_attention


def draw(*shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [a.requires_grad_() for a in torch.randn(3, *shape, generator=generator)]


@pytest.fixture
def natten(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the library: the attention from another backend, under NATTEN's signature and scale."""

    def na3d(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, scale: float | None = None) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return tiled_attention(query * scale, key, value, kernel_size)

    library = SimpleNamespace(na3d=na3d, HAS_LIBNATTEN=True)
    monkeypatch.setitem(sys.modules, "natten", library)
    return library


@pytest.mark.parametrize(("shape", "kernel"), [((1, 9, 8, 10, 2, 16), 7), ((2, 5, 6, 7, 1, 16), 4)], ids=str)
@pytest.mark.slow
def test_flex_attention_agrees_with_the_tiles(shape: tuple[int, ...], kernel: int) -> None:
    """Its backward pass exists on a GPU only."""
    q, k, v = (a.detach() for a in draw(*shape))
    found = flex_neighborhood_attention(q, k, v, kernel, compiled=False)
    torch.testing.assert_close(found, tiled_attention(q, k, v, kernel), rtol=1e-5, atol=1e-5)


def test_flex_attention_leaves_out_the_blocks_that_are_far_apart() -> None:
    """16³ tokens are 32 boxes of 4 × 4 × 8; those that see each other are counted by exhaustion."""
    mask = block_mask((16, 16, 16), 7, torch.device("cpu"), compiled=False)

    def spans(side: int) -> list[tuple[int, int]]:
        first = [min(max(i - 3, 0), 9) for i in range(16)]
        return [(first[a], first[a + side - 1] + 6) for a in range(0, 16, side)]

    seen = 1
    for side in (4, 4, 8):
        seen *= sum(low < a + side and a <= high for low, high in spans(side) for a in range(0, 16, side))
    partial, full = mask.kv_num_blocks.sum(), mask.full_kv_num_blocks.sum()
    assert int(partial + full) == seen < 32**2


@pytest.mark.usefixtures("natten")
def test_natten_is_called_without_its_scale_and_refuses_a_second_derivative() -> None:
    inputs = draw(1, 5, 4, 6, 2, 8)
    out = natten_attention(*inputs, 3)
    torch.testing.assert_close(out, tiled_attention(*inputs, 3))
    gradients = [torch.autograd.grad(o.square().sum(), inputs, retain_graph=True) for o in (out, out.clone())]
    torch.testing.assert_close(gradients[0], gradients[1])
    with pytest.raises(CryoFMError, match=r'attention_backend\("tiled"\)'):
        torch.autograd.grad(out.square().sum(), inputs, create_graph=True)


def test_the_cpu_gets_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(1, 4, 4, 4, 1, 16)
    assert not natten_supports(q, 3)
    assert not flex_supports(q)
    monkeypatch.setattr(neighborhood, "tiled_attention", lambda q, k, v, kernel: q + kernel)
    torch.testing.assert_close(neighborhood_attention_3d(q, k, v, 3), q + 3)


@pytest.mark.parametrize(
    ("natten_can", "flex_can", "chosen"),
    [(True, True, "natten"), (False, True, "flex"), (False, False, "tiled")],
)
def test_the_first_backend_that_can_is_chosen_and_can_be_overridden(
    natten_can: bool, flex_can: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("natten_supports", natten_can), ("flex_supports", flex_can)):
        monkeypatch.setattr(neighborhood, name, lambda *_, value=value: value)
    for i, name in enumerate(("natten_attention", "flex_neighborhood_attention", "tiled_attention")):
        monkeypatch.setattr(neighborhood, name, lambda q, k, v, kernel, i=i: torch.full_like(q, i))
    q, k, v = draw(1, 3, 3, 3, 1, 2)
    assert neighborhood_attention_3d(q, k, v, 3)[0, 0, 0, 0, 0, 0] == ("natten", "flex", "tiled").index(chosen)
    with attention_backend("tiled"):
        assert neighborhood_attention_3d(q, k, v, 3)[0, 0, 0, 0, 0, 0] == 2
    assert neighborhood_attention_3d(q, k, v, 3)[0, 0, 0, 0, 0, 0] == ("natten", "flex", "tiled").index(chosen)


def test_a_backend_that_cannot_is_refused_by_name() -> None:
    q, k, v = draw(1, 3, 3, 3, 1, 2)
    with attention_backend("flex"), pytest.raises(CryoFMError, match=r"'flex' cannot .*cpu.* choose from tiled"):
        neighborhood_attention_3d(q, k, v, 3)
    with pytest.raises(CryoFMError, match=r"'dense' is not one of natten, flex, tiled"), attention_backend("dense"):  # type: ignore[arg-type]
        pass
