import itertools

import pytest
import torch
from torch import Tensor

from cryofm_model.attention import neighborhood_attention_3d
from cryofm_model.errors import CryoFMError


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def window(i: int, n: int, kernel: int) -> list[int]:
    """The `kernel` keys nearest to query i of n, found by exhaustion rather than by clamping."""
    fitting = [list(range(start, start + kernel)) for start in range(n - kernel + 1)]
    return min(fitting, key=lambda keys: abs(keys[kernel // 2] - i))


def by_loops(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    batch, depth, height, width, heads, _ = q.shape
    out = torch.zeros_like(v)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                windows = (window(z, depth, kernel), window(y, height, kernel), window(x, width, kernel))
                c, b, a = zip(*itertools.product(*windows), strict=True)
                for n, h in itertools.product(range(batch), range(heads)):
                    logits = k[n, c, b, a, h] @ q[n, z, y, x, h]
                    out[n, z, y, x, h] = logits.exp() / logits.exp().sum() @ v[n, c, b, a, h]
    return out


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((1, 5, 4, 3, 2, 3), 3),
        ((1, 3, 3, 3, 1, 4), 3),
        ((2, 4, 5, 3, 3, 2), 2),
        ((2, 2, 3, 1, 2, 3), 1),
        ((1, 6, 5, 5, 1, 2), 5),
        ((1, 13, 3, 7, 1, 2), 3),
    ],
    ids=str,
)
def test_output_and_gradients_are_those_of_the_loops(shape: tuple[int, ...], kernel: int) -> None:
    inputs = draw(*shape)
    cotangent = draw(*shape, seed=1)[0].detach()
    expected = by_loops(*inputs, kernel)
    gradients = torch.autograd.grad(expected, inputs, cotangent)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        q, k, v = copies = [a.detach().to(dtype).requires_grad_() for a in inputs]
        found = neighborhood_attention_3d(q, k, v, kernel)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
        for a, b in zip(torch.autograd.grad(found, copies, cotangent.to(dtype)), gradients, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance)


def test_a_query_sees_exactly_the_paper_s_window() -> None:
    """With q = 0 every key of the window weighs 1/7³; the gradient in v shows which keys these are."""
    q, k, v = draw(1, 9, 8, 10, 1, 1)
    out = neighborhood_attention_3d(torch.zeros_like(q), k, v, 7)
    (weights,) = torch.autograd.grad(out[0, 8, 3, 1].sum(), v)
    expected = torch.zeros(9, 8, 10, dtype=torch.float64)
    expected[2:9, 0:7, 0:7] = 1 / 343  # shifted inside at the end of z and the start of x; centred in y
    torch.testing.assert_close(weights[0, ..., 0, 0], expected)


def test_a_window_as_large_as_the_grid_is_global_attention() -> None:
    q, k, v = draw(2, 7, 7, 7, 2, 4, dtype=torch.float32)
    a, b, c = (x.flatten(1, 3).transpose(1, 2) for x in (q, k, v))
    expected = ((a @ b.mT).softmax(-1) @ c).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(neighborhood_attention_3d(q, k, v, 7), expected, rtol=1e-5, atol=1e-5)


def test_strided_input_is_read_right() -> None:
    q, k, v = draw(1, 4, 5, 3, 2, 4)
    packed = torch.stack([q, k, v], -2).detach()  # as the output of one projection, sliced
    strided = neighborhood_attention_3d(packed[..., 0, :], packed[..., 1, :], packed[..., 2, :], 3)
    torch.testing.assert_close(strided, neighborhood_attention_3d(q, k, v, 3))


@pytest.mark.parametrize("kernel", [0, 4])
def test_a_window_that_does_not_fit_is_refused(kernel: int) -> None:
    with pytest.raises(CryoFMError, match=rf"kernel_size {kernel} .*\(5, 3, 6\).*from 1 to 3"):
        neighborhood_attention_3d(*draw(1, 5, 3, 6, 1, 2), kernel)


def test_shapes_that_differ_are_refused() -> None:
    q, k, v = draw(1, 3, 3, 3, 2, 4)
    with pytest.raises(CryoFMError, match=r"one shape .*\(1, 3, 3, 3, 1, 4\)"):
        neighborhood_attention_3d(q, k, v[..., :1, :], 3)
    with pytest.raises(CryoFMError, match=r"\(3, 3, 3, 2, 4\)"):
        neighborhood_attention_3d(q[0], k[0], v[0], 3)


def test_dtypes_that_differ_are_refused() -> None:
    q, k, v = draw(1, 3, 3, 3, 2, 4)
    with pytest.raises(CryoFMError, match=r"one dtype .*torch.float64 on cpu, torch.float64 on cpu, torch.float32"):
        neighborhood_attention_3d(q, k, v.float(), 3)


@pytest.mark.parametrize(("shape", "kernel"), [((2, 5, 4, 7, 2, 3), 3), ((1, 3, 3, 3, 1, 4), 3)], ids=str)
def test_second_derivatives_are_those_of_finite_differences(shape: tuple[int, ...], kernel: int) -> None:
    q, k, v = (a.detach() / 2 for a in draw(*shape))
    directions = [draw(*shape, seed=seed)[0].detach() for seed in range(1, 5)]
    cotangents = draw(*shape, seed=5)

    def gradients(step: float, cotangent: Tensor) -> tuple[Tensor, ...]:
        inputs = [(a + step * d).requires_grad_() for a, d in zip((q, k, v), directions, strict=False)]
        return torch.autograd.grad(neighborhood_attention_3d(*inputs, kernel), inputs, cotangent)

    cotangent = draw(*shape, seed=6)[0].detach()
    h = 1e-4
    pair = [gradients(step, cotangent + step * directions[3]) for step in (h, -h)]
    expected = sum(((a - b) / (2 * h) * c).sum() for a, b, c in zip(*pair, cotangents, strict=True))

    inputs = [a.clone().requires_grad_() for a in (q, k, v, cotangent)]
    first = torch.autograd.grad(
        neighborhood_attention_3d(*inputs[:3], kernel), inputs[:3], inputs[3], create_graph=True
    )
    second = torch.autograd.grad(first, inputs, [c.detach() for c in cotangents])
    found = sum((a * b).sum() for a, b in zip(second, directions, strict=True))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-8)


def test_a_third_derivative_is_refused() -> None:
    q, k, v = draw(1, 3, 3, 3, 1, 2)
    (first,) = torch.autograd.grad(neighborhood_attention_3d(q, k, v, 3).square().sum(), q, create_graph=True)
    with pytest.raises(CryoFMError, match="third derivative"):
        torch.autograd.grad(first.square().sum(), q, create_graph=True)


def test_many_heads_and_batches_are_computed_in_blocks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(3, 6, 5, 9, 5, 4)
    whole = neighborhood_attention_3d(*inputs, 3)
    gradients = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr("cryofm_model.attention.tiles._SCORES", 2 * 4**3 * 6**3)  # two heads at a time
    blocks = neighborhood_attention_3d(*inputs, 3)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(blocks.square().sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_only_the_rounding_of_its_output(dtype: torch.dtype) -> None:
    q, k, v = inputs = [a.detach().requires_grad_() for a in draw(1, 8, 9, 7, 2, 16, dtype=dtype)]
    exact = [a.detach().float().requires_grad_() for a in inputs]
    cotangent = draw(1, 8, 9, 7, 2, 16, dtype=dtype, seed=1)[0].detach()
    with torch.autocast("cpu", dtype):
        found = neighborhood_attention_3d(q, k, v, 7)
    expected = neighborhood_attention_3d(exact[0], exact[1], exact[2], 7)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
    gradients = torch.autograd.grad(expected, exact, cotangent.float())
    eps = torch.finfo(dtype).eps
    for a, b in zip(torch.autograd.grad(found, inputs, cotangent), gradients, strict=True):
        # O is kept in half precision, which delta = rowsum(dO ∘ O) feels.
        torch.testing.assert_close(a.float(), b, rtol=2 * eps, atol=4 * eps * float(b.abs().max()))


def test_scores_of_any_size_do_not_overflow() -> None:
    q, k, v = draw(1, 4, 3, 5, 1, 2, dtype=torch.float32)
    out = neighborhood_attention_3d(1e4 * q, k, v, 3)
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (q, k, v)))
