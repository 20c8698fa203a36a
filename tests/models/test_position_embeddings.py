import numpy as np
import pytest

from vadapter.base.errors import UserError
from vadapter.models.position_embeddings import resample


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
