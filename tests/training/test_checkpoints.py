import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests import saved
from tests.training import small
from vadapter.base.errors import UserError
from vadapter.training import checkpoints
from vadapter.training.state import TrainState


def state(step, width=3):
    params = {"adapter": {"kernel": jnp.full((2, width), float(step)), "half": jnp.ones(2, jnp.bfloat16)}}
    return TrainState(jnp.asarray(step, jnp.int32), params, ({"mu": params}, ()))


def shardings(like):
    return jax.tree.map(lambda x: small.partitioner().replicated, like)


def test_newest_are_kept_under_t5x_names(tmp_path):
    with checkpoints.Checkpointer(str(tmp_path), keep=2) as checkpointer:
        for step in (5, 10, 20):
            checkpointer.save(state(step), {"data": {"seed": 3}})
        checkpointer.save(state(20, width=9), {})  # there already: left as it is
        checkpointer.finish()
    assert checkpoints.steps(str(tmp_path)) == [10, 20]
    assert sorted(p.name for p in (tmp_path / "checkpoint_20").iterdir() if p.is_dir()) == [
        "optimizer",
        "params",
        "run",
    ]
    assert saved.load_params(str(tmp_path))["adapter/kernel"].tolist() == [[20.0] * 3] * 2
    assert saved.load_params(str(tmp_path), 10)["adapter/half"].dtype == jnp.bfloat16
    assert saved.load_params(str(tmp_path / "checkpoint_10"))["adapter/kernel"][0, 0] == 10
    with checkpoints.Checkpointer(str(tmp_path), read_only=True) as checkpointer:
        assert checkpointer.run(20) == {"format": 1, "step": 20, "data": {"seed": 3}, "sources": [], "checksums": True}


def test_a_state_comes_back_as_it_was(tmp_path):
    with checkpoints.Checkpointer(str(tmp_path)) as checkpointer:
        checkpointer.save(state(4), {})
        checkpointer.wait()
        back = checkpointer.restore(4, state(0), shardings(state(0)))
    assert int(back.step) == 4
    assert back.opt_state[1] == ()
    np.testing.assert_array_equal(back.opt_state[0]["mu"]["adapter"]["kernel"], state(4).params["adapter"]["kernel"])
    assert back.params["adapter"]["half"].dtype == jnp.bfloat16


def test_another_shape_is_named(tmp_path):
    with checkpoints.Checkpointer(str(tmp_path)) as checkpointer:
        checkpointer.save(state(4), {})
        checkpointer.wait()
        other = state(0, width=5)
        message = r"checkpoint_4 are not those of this run. adapter/kernel: expected \(2, 5\), found \(2, 3\). Use"
        with pytest.raises(UserError, match=message):
            checkpointer.restore(4, other, shardings(other))


def test_another_format_is_refused(tmp_path):
    saved.save_params(str(tmp_path), {"a": np.ones(2)})
    file = next((tmp_path / "checkpoint_0/run").iterdir())
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with (
        checkpoints.Checkpointer(str(tmp_path), read_only=True) as checkpointer,
        pytest.raises(UserError, match="has format 99; this version of vadapter reads format 1"),
    ):
        checkpointer.run(0)


def test_a_checkpoint_that_is_being_written_into_a_bucket_is_none(tmp_path):
    """It has its name from the beginning there, and Orbax adds the time when all is written."""
    with checkpoints.Checkpointer(str(tmp_path), keep=2) as checkpointer:
        for step in (5, 10):
            checkpointer.save(state(step), {})
    file = tmp_path / "checkpoint_10" / "_CHECKPOINT_METADATA"
    file.write_text(json.dumps({**json.loads(file.read_text()), "commit_timestamp_nsecs": None}))
    assert checkpoints.steps(str(tmp_path)) == [5]
    file.write_text(file.read_text()[:10])
    assert checkpoints.steps(str(tmp_path)) == [5]


def test_what_was_copied_into_a_bucket_is_gone_on_with(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    saved.save_params(str(tmp_path), {"a": np.ones(2)}, step=7)
    # Orbax marks what it writes into a bucket; of a disk, older versions of it leave no mark that could be copied.
    (tmp_path / "checkpoint_7" / "commit_success.txt").unlink()
    in_a_bucket = ocp.path.atomicity.CommitFileTemporaryPath
    monkeypatch.setattr(ocp.path.atomicity_defaults, "get_default_temporary_path_class", lambda *_, **__: in_a_bucket)
    saved.save_params(str(tmp_path), {"a": np.zeros(2)}, step=9)
    assert checkpoints.steps(str(tmp_path)) == [7, 9]
    assert saved.load_params(str(tmp_path), 7)["a"].tolist() == [1, 1]
    assert saved.load_params(str(tmp_path))["a"].tolist() == [0, 0]


def test_a_bucket_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    saved.save_params(str(tmp_path), {"a": np.ones(2)})
    with checkpoints.Checkpointer(str(tmp_path), read_only=True) as checkpointer:

        def unanswered(*_, **__):
            raise ValueError("UNAVAILABLE: Error reading: connection reset")

        monkeypatch.setattr(checkpointer._orbax, "restore", unanswered)
        with pytest.raises(ConnectionError, match="checkpoint_0 cannot be read now"):
            checkpointer.read(0, checkpointer.shapes(0))


def test_a_process_that_is_lost_while_all_restore_is_no_damage(tmp_path, monkeypatch):
    saved.save_params(str(tmp_path), {"a": np.ones(2)})
    with checkpoints.Checkpointer(str(tmp_path), read_only=True) as checkpointer:

        def lost(*_, **__):
            raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

        monkeypatch.setattr(checkpointer._orbax, "restore", lost)
        with pytest.raises(ValueError, match="Gloo") as found:
            checkpointer.read(0, checkpointer.shapes(0))
        assert not isinstance(found.value, UserError)


def test_a_lost_answer_of_a_bucket_leaves_nothing_of_a_checkpoint(tmp_path, monkeypatch):
    saved.save_params(str(tmp_path), {"a": np.ones(2)})
    real, asked = type(epath.Path(tmp_path)).rmtree, []

    def lost_at_first(path, missing_ok=False):
        asked.append(path)
        if len(asked) == 1:
            raise FileNotFoundError("deleted already, in the first of two tries")
        real(path, missing_ok)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "rmtree", lost_at_first)
    monkeypatch.setattr(checkpoints, "is_remote", lambda path: True)
    checkpoints.drop_after(str(tmp_path), -1)
    assert not (tmp_path / "checkpoint_0").exists()
