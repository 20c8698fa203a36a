"""Packed batches: what is in them, hosts, resuming, losses as unpacked, and bad settings."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from tests.data.loaders import make_loader
from tests.models import small
from vadapter.base.errors import UserError
from vadapter.data.order import packing as packing_lib
from vadapter.data.order.config import PackingConfig
from vadapter.data.rows.sizes import Layout
from vadapter.models import tpu_kernels

ROOMY = PackingConfig(samples=2, tokens=160, window=2)


def loader(index=0, count=1, packing: Any = ROOMY, **changes):
    settings = {"mixture": "scenes_images", "batch_size": 8, "num_visual_tokens": 3, "image_size": 32}
    return make_loader(index=index, count=count, packing=packing, **(settings | changes))


def take(n, start=0, **changes):
    return list(itertools.islice(loader(**changes).batches(start), n))


def assert_same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def samples_in(batch):
    """A row's samples, each by its tokens and the pixels of its picture, in an order of their own."""
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == segment
            medium = batch.media_index[row][here].max() // 3
            found.append((batch.tokens[row][here].tobytes(), batch.media[row, medium].tobytes()))
    return sorted(found)


@pytest.mark.usefixtures("scenes_dir")
class TestLoader:
    def test_packed_rows_hold_the_samples_of_the_unpacked_batch_with_their_pictures(self):
        (packed,) = take(1)
        (plain,) = take(1, packing=None, batch_size=16)
        assert packed.tokens.shape == (8, 160) and packed.media.shape == (8, 2, 1, 32, 32, 3)
        assert samples_in(packed) == samples_in(plain)
        assert packed.target_weights.sum() == plain.target_weights.sum()
        assert packed.counts() == plain.counts()

    def test_an_epoch_has_every_record_once(self):
        made = loader(mixture="scenes_caption", batch_size=5, packing=dataclasses.replace(ROOMY, window=1))
        ids = [name for step in range(15) for name in made.record_ids(step)]
        assert len(set(ids)) == len(ids) == 150

    def test_a_batch_does_not_need_those_before_it(self):
        assert_same(take(4)[3], take(1, start=3)[0])

    @pytest.mark.parametrize("count", [2, 4])
    def test_hosts_make_blocks_of_the_same_rows(self, count):
        (whole,) = take(1, start=2)
        parts = [take(1, start=2, index=i, count=count)[0] for i in range(count)]
        assert_same(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole)

    def test_samples_without_room_are_counted(self):
        tight = PackingConfig(samples=4, tokens=67, window=1)
        made = loader(packing=tight)
        batch = next(made.batches())
        counters = made.counters()
        assert counters["unpacked"] == 32 - batch.counts().examples > 0
        assert 0.5 < counters["packing_efficiency"] == (batch.segment_ids > 0).mean()
        with pytest.raises(UserError, match="long_text is 'error'"):
            next(loader(packing=tight, long_text="error").batches())

    def test_rows_far_too_short_stop_the_run(self):
        with pytest.raises(UserError, match="found none. Raise PackingConfig.tokens"):
            take(20, packing=PackingConfig(samples=8, tokens=67))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tokens": 66}, "tokens to be a whole number of at least 67"),
            ({"media": 0}, "media to be a whole number of at least 1"),
            ({"targets": 31}, "targets to be a whole number of at least 32"),
            ({"samples": 0}, "samples to be a whole number"),
            ({"window": 3}, "whole windows of 3; found 8"),
            ({"tokens": 160.5}, "found 160.5"),
            ({"window": 0}, "window to be a whole number of at least 1"),
            ({"window": "4"}, "found '4'"),
        ],
    )
    def test_bad_settings(self, changes, message):
        with pytest.raises(UserError, match=message):
            loader(packing=dataclasses.replace(ROOMY, **changes))

    def test_defaults_leave_no_caption_out_whatever_the_hosts(self):
        (whole,) = take(1, packing=PackingConfig())
        (half,) = take(1, packing=PackingConfig(), count=2)
        (plain,) = take(1, packing=None, batch_size=32)
        assert whole.counts() == plain.counts()
        assert whole.tokens.shape == (8, 4 * (3 + 32)) and half.tokens.shape == (4, 140)

    def test_what_is_no_packing_is_refused(self):
        with pytest.raises(UserError, match=r"to be a PackingConfig or None; found 4\. In gin"):
            loader(packing=4)
        with pytest.raises(UserError, match="Expected rows of text to pack"):
            loader(mixture="scenes_labels")

    def test_evaluation_is_not_packed(self):
        with pytest.raises(UserError, match="packing, which is for training"):
            next(loader(split="validation").eval_batches())


def test_long_samples_are_spread_over_rows():
    needs = np.asarray([[9, 1, 1], [8, 1, 1], [2, 1, 1], [1, 1, 1], [9, 1, 1]])
    rows = packing_lib.place(needs, np.asarray([11, 2, 2]), 2)
    assert rows.tolist() == [0, -1, 0, 1, 1]


def _losses(config, batch):
    params = jax.jit(config.make().init)(jax.random.key(0), batch)["params"]

    def loss(params, batch):
        sums = config.make().apply({"params": params}, batch, method="loss_sums")
        return sums.loss_sum / sums.weight_sum

    return params, jax.jit(jax.value_and_grad(loss))


def _ragged(config):
    """Rows of one sample, with targets of 1 to 4 tokens and padding behind them."""
    batch = small.batch(config, rows=8)
    keep = np.arange(8) % 4 + 1
    weights = np.where(np.arange(batch.target_ids.shape[1]) < keep[:, None], 1, 0).astype(np.float32)
    cut = batch.tokens.shape[1] - 4 + keep
    segments = np.where(np.arange(batch.tokens.shape[1]) < cut[:, None], 1, 0).astype(np.int32)
    return batch.replace(target_weights=weights, segment_ids=segments)


LOCAL = small.decoder(attention_pattern=("local", "global"), window=3)
PALM = small.decoder(parallel_block=True, num_kv_heads=1)


def _packed(config):
    """Rows of one sample, and the same samples packed."""
    plain = jax.tree.map(np.asarray, _ragged(config))
    visual, length = config.num_visual_tokens(1), plain.tokens.shape[1]
    settings = PackingConfig(samples=2, tokens=2 * length + 3, media=3, window=4)
    layout = Layout({"inputs": length - visual - 4, "targets": 4}, 1, visual)
    packed, left_over = packing_lib.pack(packing_lib.budgets(settings, layout, batch_size=4), plain, visual)
    assert not left_over and packed.segment_ids.max() >= 2
    return plain, packed


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(small.vlm(name), id=name) for name in ("mlp", "paper")),
        pytest.param(small.vlm("mlp", decoder=LOCAL), id="windows"),
        pytest.param(small.vlm("mlp", decoder=PALM), id="palm"),
        pytest.param(small.vlm("mlp", num_frames=2), id="frames"),
    ],
)
def test_loss_and_gradients_are_those_of_unpacked_rows(config):
    plain, packed = _packed(config)
    params, loss = _losses(config, plain)
    assert_near(loss(params, packed), loss(params, plain))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [small.decoder(), LOCAL], ids=["global", "windows"])
def test_the_kernel_of_tpus_gives_the_loss_and_gradients_of_plain_attention(decoder):
    config = small.vlm("mlp", decoder=decoder)
    _, packed = _packed(config)
    params, loss = _losses(config, packed)
    with tpu_kernels.interpreted():
        kernel = dataclasses.replace(decoder, attention_impl="splash")
        _, with_kernel = _losses(small.vlm("mlp", decoder=kernel), packed)
        assert_near(with_kernel(params, packed), loss(params, packed))


def assert_near(found, expected):
    """A loss with its gradients."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(np.abs(b).max(), 1))
