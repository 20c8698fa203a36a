"""T5's relative position biases."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base.errors import UserError
from vadapter.models.relative_positions import RelativeBias, buckets


def test_near_distances_have_buckets_of_their_own_and_far_ones_share_them():
    found = buckets(32, 128)
    assert found[:16].tolist() == list(range(16))
    assert (np.diff(found) >= 0).all() and found[-1] == 31
    # 16 + log(n / 16) / log(8) * 16 passes 17, 18 and 19 at the distances 19, 21 and 24.
    assert [int(np.argmax(found == bucket)) for bucket in (16, 17, 18, 19)] == [16, 19, 21, 24]


def test_a_bias_is_that_of_the_distance_in_the_segment():
    module = RelativeBias(num_heads=2, count=4, max_distance=6)
    positions = np.asarray([[0, 1, 2, 0, 1]])  # two segments
    params = nn.unbox(module.init(jax.random.key(0), positions, positions)["params"])
    bias = module.apply({"params": params}, positions, positions)
    table = np.asarray(params["embedding"])
    assert bias.shape == (1, 2, 5, 5)
    np.testing.assert_array_equal(bias[0, :, 2, 1], table[:, 1])
    np.testing.assert_array_equal(bias[0, :, 4, 3], bias[0, :, 1, 0])
    np.testing.assert_array_equal(bias[0, :, 0, 2], table[:, 0])  # ahead of the query


@pytest.mark.parametrize("wrong", [{"relative_buckets": 1}, {"relative_max_distance": 8}, {"attention_impl": "splash"}])
def test_biases_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="DecoderConfig"):
        small.decoder(**{"relative_buckets": 16, "rope_pattern": (False,), **wrong})
