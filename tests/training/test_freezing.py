import jax.numpy as jnp
import pytest

from tests.training import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.training import freezing
from vadapter.training.optimizers import make_optimizer
from vadapter.training.state import abstract_state
from vadapter.training.storage import Storage


def test_partition_and_its_errors():
    params = small.params()
    trained, frozen = freezing.partition(params, ["adapter/lm/.*", "head/.*"])
    assert set(trees.flatten(trained)) == {"adapter/lm/bias", "adapter/lm/kernel", "head/bias", "head/kernel"}
    assert trees.flatten(trees.merge(trained, frozen)).keys() == trees.flatten(params).keys()
    with pytest.raises(UserError, match="trainable pattern 'adapter/ml/.\\*' matches no parameter.*adapter/lm"):
        freezing.partition(params, ["adapter/ml/.*"])
    with pytest.raises(UserError, match="No parameter is trainable"):
        freezing.partition(params, [])


def test_trained_weights_become_float32_whatever_they_were_read_as():
    params = {"a": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}, "ids": jnp.arange(3)}
    assert Storage({"a/kernel"}).keep_all(params)["a"]["kernel"].dtype == jnp.float32
    frozen = Storage(()).keep_all(params)
    assert (frozen["a"]["kernel"].dtype, frozen["ids"].dtype) == (jnp.bfloat16, jnp.int32)
    with pytest.raises(UserError, match="ids is trainable but holds int32"):
        Storage({"ids"}).keep_all(params)
    with pytest.raises(UserError, match="frozen_dtype is 'int4'"):
        Storage((), "int4")


def test_table_counts_parameters_and_bytes():
    trained, frozen = freezing.partition(small.params(), ["adapter/.*"])
    frozen = Storage(()).keep_all(frozen)
    state = abstract_state(make_optimizer(small.optimizer(), trained, 10), trained)
    rows = {r.part: r for r in freezing.summarize(trained, frozen, state.opt_state)}
    assert list(rows) == ["adapter/front", "adapter/lm", "decoder", "encoder", "head"]
    lm, encoder = rows["adapter/lm"], rows["encoder"]
    assert (lm.trainable, lm.parameters, lm.weight_bytes, lm.optimizer_bytes) == (True, 72, 288, 576)
    assert (encoder.trainable, encoder.parameters, encoder.weight_bytes, encoder.optimizer_bytes) == (False, 56, 112, 0)
    text = freezing.table(list(rows.values()))
    assert "frozen" in text
    assert text.splitlines()[-1].split()[:2] == ["all", "308"]
