"""A run can go back to an older checkpoint that it has kept."""

import pytest

from tests.faults import damage
from tests.training import small
from tests.training.test_loop import assert_same, lines, run
from vadapter.base.errors import UserError
from vadapter.training import checkpoints

KEPT = dict(checkpoint_every=2, keep_checkpoints=3, log_every=1)


def test_what_came_later_is_dropped_and_made_again(tmp_path, capsys):
    first = run(tmp_path, **KEPT)
    again = run(tmp_path, step=2, **KEPT)
    assert "Going back to step 2: deleted checkpoint_4, checkpoint_6." in capsys.readouterr().out
    assert_same(first.params, again.params)
    assert checkpoints.steps(str(tmp_path)) == [2, 4, 6]
    assert [row["step"] for row in lines(tmp_path, "train")] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_went_back_and_was_stopped_goes_on_when_started_again(tmp_path, capsys):
    """A launcher starts the same command again, --step and all."""

    def dies_at(last):
        def batches(start):
            for i, batch in enumerate(small.batches(start), start):
                if i == last:
                    raise OSError("the machine is gone")
                yield batch

        return batches

    run(tmp_path, **KEPT)
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, step=2, data=dies_at(3), **KEPT)  # before it saved anything
    assert checkpoints.steps(str(tmp_path)) == [2]
    assert not (tmp_path / "done.json").exists()
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, step=2, data=dies_at(5), **KEPT)
    assert checkpoints.steps(str(tmp_path)) == [2, 4]
    run(tmp_path, step=2, **KEPT)
    said = capsys.readouterr().out
    assert "went back to step 2 before: it goes on from checkpoint_4" in said
    assert f"Resuming {tmp_path} at step 4." in said
    assert checkpoints.steps(str(tmp_path)) == [2, 4, 6]


def test_only_to_a_whole_checkpoint_that_is_there(tmp_path):
    with pytest.raises(UserError, match="checkpoint_2 was expected"):
        run(tmp_path, step=2, **KEPT)
    run(tmp_path, **KEPT)
    for step in (3, 8, -1):
        with pytest.raises(
            UserError, match=f"checkpoint_{step} was expected in .*; found checkpoint_2, checkpoint_4, che"
        ):
            run(tmp_path, step=step, **KEPT)
    damage.damage_one(tmp_path / "checkpoint_2" / "params", seed=0)
    with pytest.raises(UserError, match="checkpoint_2 is damaged"):
        run(tmp_path, step=2, **KEPT)
    assert checkpoints.steps(str(tmp_path)) == [2, 4, 6]
