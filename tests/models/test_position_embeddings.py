from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from vadapter.base.errors import UserError
from vadapter.models.position_embeddings import Resampling, resample, rotary_angles, sines

METHODS = get_args(Resampling)


def bilinear(grid, size):
    """Corners on corners, written out: a weighted mean of the four neighbours."""
    old = len(grid)
    out = np.zeros((size, size, grid.shape[-1]))
    for i in range(size):
        for j in range(size):
            y, x = (k * (old - 1) / (size - 1) for k in (i, j))
            top, left = min(int(y), old - 2), min(int(x), old - 2)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                out[i, j] += weight * grid[top + dy, left + dx]
    return out


def random(tokens, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(1, tokens, 6)).astype(dtype)


def test_the_same_number_of_tokens_is_returned_as_it_is():
    pos = random(10)
    assert resample(pos, 10, extra=1) is pos


def test_two_by_two_to_three_by_three_by_hand():
    pos = np.array([0.0, 2.0, 4.0, 10.0], np.float32).reshape(1, 4, 1)
    want = [0, 1, 2, 2, 4, 6, 4, 7, 10]
    np.testing.assert_allclose(resample(pos, 9)[0, :, 0], want, atol=1e-6)


@pytest.mark.parametrize("old, new", [(4, 7), (7, 4), (3, 9), (9, 2), (16, 27)])
def test_it_is_bilinear_with_aligned_corners(old, new):
    grid = random(old * old).reshape(old, old, -1)
    found = resample(grid.reshape(1, old * old, -1), new * new).reshape(new, new, -1)
    np.testing.assert_allclose(found, bilinear(grid.astype(np.float64), new), atol=1e-6)
    corners = [0, 0, -1, -1], [0, -1, 0, -1]
    np.testing.assert_array_equal(found[corners], grid[corners])


def test_leading_tokens_are_kept():
    pos = random(2 + 9)
    found = resample(pos, 2 + 25, extra=2)
    np.testing.assert_array_equal(found[:, :2], pos[:, :2])
    np.testing.assert_array_equal(found[:, 2:], resample(pos[:, 2:], 25))


def test_the_dtype_is_kept():
    assert resample(random(4, np.float16), 9).dtype == np.float16


@pytest.mark.parametrize("tokens, new, extra", [(10, 16, 0), (9, 17, 0), (9, 17, 1), (9, 0, 0)])
def test_grids_that_are_not_square_are_refused(tokens, new, extra):
    with pytest.raises(UserError, match="not a square grid"):
        resample(random(tokens), new, extra)


def test_other_shapes_are_refused():
    with pytest.raises(UserError, match="found \\(4, 6\\)"):
        resample(random(4)[0], 9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("new", [2, 5, 9])
def test_every_method_keeps_a_constant_and_is_the_same_in_jax(method, new):
    flat = np.full((1, 25, 3), 0.7, np.float32)
    np.testing.assert_allclose(resample(flat, new * new, method=method), 0.7, rtol=1e-6)
    pos = random(1 + 25)
    ours = resample(jnp.asarray(pos), 1 + new * new, 1, method)
    np.testing.assert_allclose(ours, resample(pos, 1 + new * new, 1, method), atol=1e-6)


# What torch.nn.functional.interpolate makes of 0, 1, 4, 9 on a line, align_corners False.
@pytest.mark.parametrize(
    ("method", "two", "six"),
    [
        ("bilinear_antialias", [1.0, 5.714286], [0.0, 0.5, 1.5, 3.5, 6.5, 9.0]),
        ("bicubic", [0.21875, 6.78125], [-0.086806, 0.21875, 1.430555, 3.152778, 6.78125, 9.43403]),
        ("bicubic_antialias", [0.603306, 6.082644], [-0.065789, 0.294118, 1.361111, 3.361111, 6.82353, 9.328948]),
    ],
)
def test_the_methods_of_pytorch(method, two, six):
    line = np.repeat(np.array([0.0, 1.0, 4.0, 9.0], np.float32), 4).reshape(1, 16, 1)
    for wanted in (two, six):
        n = len(wanted)
        found = resample(line, n * n, method=method).reshape(n, n)
        np.testing.assert_allclose(found, np.repeat(np.array(wanted), n).reshape(n, n), atol=1e-5)


def test_rotary_angles_are_those_of_row_and_column():
    angles = rotary_angles(2, 8, base=16.0, extra=1)
    assert angles.shape == (5, 4)
    np.testing.assert_array_equal(angles[0], 0)
    # The centres are at -1/2 and 1/2; the frequencies are a turn and a quarter of one.
    row, column = np.pi * np.array([1, 0.25]), np.pi * np.array([1, 0.25])
    np.testing.assert_allclose(angles[1], [*-row, *-column], rtol=1e-6)
    np.testing.assert_allclose(angles[2], [*-row, *column], rtol=1e-6)
    np.testing.assert_allclose(angles[3], [*row, *-column], rtol=1e-6)


def test_sines_tell_column_and_row():
    found = sines(3, 8)
    assert found.shape == (1, 9, 8)
    np.testing.assert_allclose(
        found[0, 5],
        [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)] + [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)],
        rtol=1e-6,
    )
