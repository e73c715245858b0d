import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofm_ops import (
    CryoFMError,
    GridMismatchError,
    fourier_filter,
    frequencies,
    friedel_weights,
    half_shape,
    irfft,
    radial,
    radial_mean,
    rfft,
    shell_sizes,
    standard_normal,
)


def brute_frequency(k: int, n: int) -> float:
    return min(k, n - k) / n


def full_frequencies(shape):
    for index in itertools.product(*map(range, shape)):
        yield index, math.hypot(*(brute_frequency(k, n) for k, n in zip(index, shape, strict=True)))


def test_transform_and_filter_equal_the_dense_ones(oracle, generator):
    x = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(oracle.full(rfft(x)), oracle.matrix @ x.flatten().to(torch.complex128))
    torch.testing.assert_close(irfft(rfft(x), oracle.shape), x)
    gain = radial(torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64), oracle.shape)
    torch.testing.assert_close(fourier_filter(x, gain).flatten(), oracle.filter(gain) @ x.flatten())


def test_frequencies_and_friedel_weights_stand_for_the_full_transform(oracle):
    expected = torch.tensor([f for _, f in full_frequencies(oracle.shape)], dtype=torch.float64)
    torch.testing.assert_close(oracle.full(frequencies(oracle.shape)), expected)
    half = frequencies(oracle.shape) ** 2
    assert float((half * friedel_weights(oracle.shape)).sum()) == pytest.approx(float((expected**2).sum()))


@given(
    shape=st.tuples(*[st.integers(2, 6)] * 3),
    table=st.lists(st.floats(0, 10), min_size=2, max_size=9),
)
@settings(max_examples=8, deadline=None)
def test_radial_interpolates_to_nyquist_and_holds_beyond(shape, table):
    values = radial(torch.tensor(table, dtype=torch.float64), shape)
    assert values.shape == half_shape(shape)
    values = values.tolist()
    for (k, j, i), f in full_frequencies(shape):
        if i <= shape[2] // 2:
            position = min(f * 2 * (len(table) - 1), len(table) - 1)
            low = min(int(position), len(table) - 2)
            expected = table[low] + (position - low) * (table[low + 1] - table[low])
            assert abs(values[k][j][i] - expected) < 1e-9


@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 5, 5), (3, 4, 5), (2, 9, 6)], ids=str)
def test_shell_means_equal_a_loop_over_the_full_transform(shape, generator):
    spectrum = rfft(torch.randn(2, *shape, generator=generator, dtype=torch.float64)).abs() ** 2
    for n in range(2, max(shape) // 2 + 2):
        sums, counts = torch.zeros(2, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for (k, j, i), f in full_frequencies(shape):
            shell = math.floor(f * 2 * (n - 1) + 0.5)
            if abs(f * 2 * (n - 1) % 1 - 0.5) < 1e-9:  # ties go to the even shell
                shell = round(round(f * 4 * (n - 1)) / 2)
            if shell < n:
                half = (k, j, i) if i <= shape[2] // 2 else (-k % shape[0], -j % shape[1], shape[2] - i)
                sums[:, shell] += spectrum[(slice(None), *half)]
                counts[shell] += 1
        torch.testing.assert_close(shell_sizes(shape, n), counts)
        torch.testing.assert_close(radial_mean(spectrum, shape, n), sums / counts)


def test_a_table_goes_round_through_a_box():
    table = torch.full((9,), 2.0)
    torch.testing.assert_close(radial_mean(radial(table, (16, 12, 15)), (16, 12, 15)), table)


def test_one_draw_after_another_whatever_the_batch(generator):
    batch = standard_normal(torch.zeros(2, 3, 3, 4, 5), generator)
    again = generator.manual_seed(7)
    for element in batch.reshape(6, 3, 4, 5):
        assert torch.equal(element, standard_normal(torch.zeros(3, 4, 5), again))


def test_bad_grids_are_named():
    with pytest.raises(GridMismatchError, match=r"\(4, 4, 4\) is not on the half grid \(4, 4, 3\)"):
        radial_mean(torch.ones(4, 4, 4), (4, 4, 4))
    with pytest.raises(CryoFMError, match="between 2 and 3 shells, asked for 4"):
        radial_mean(torch.ones(4, 4, 3), (4, 4, 4), 4)
    with pytest.raises(CryoFMError, match="at least 2 entries"):
        radial(torch.ones(1), (4, 4, 4))
