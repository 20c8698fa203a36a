"""The order of data in closed form."""

import numpy as np
import pytest

from vadapter.data.order import schedule


def test_every_epoch_has_every_record_once_in_another_order():
    indices = schedule.shuffled(np.arange(30), 10, seed=1).reshape(3, 10)
    np.testing.assert_array_equal(np.sort(indices, axis=1), [range(10)] * 3)
    assert len({tuple(epoch) for epoch in indices}) == 3


def test_order_depends_on_the_seed_and_on_nothing_else():
    np.testing.assert_array_equal(
        schedule.shuffled(np.arange(50), 20, 1)[35:], schedule.shuffled(np.arange(35, 50), 20, 1)
    )
    assert (schedule.shuffled(np.arange(20), 20, 1) != schedule.shuffled(np.arange(20), 20, 2)).any()
    np.testing.assert_array_equal(schedule.shuffled(np.arange(5), 1, 1), 0)


def test_shares_follow_the_rates():
    parts, _ = schedule.Schedule([3, 1], seed=0).at(np.arange(10 * schedule.BLOCK))
    assert np.mean(parts == 0) == 0.75
    assert schedule.apportion([1, 1e-9], 100) == [99, 1]
    assert sum(schedule.apportion([1, 1, 1], 1024)) == 1024


def test_ordinals_count_up_within_a_component_from_any_slot():
    plan = schedule.Schedule([5, 2, 1], seed=3)
    parts, ordinals = plan.at(np.arange(3000))
    for c in range(3):
        np.testing.assert_array_equal(ordinals[parts == c], np.arange(np.count_nonzero(parts == c)))
        assert plan.before(2222, c) == np.count_nonzero(parts[:2222] == c)
    np.testing.assert_array_equal(plan.at(np.arange(2000, 2100))[1], ordinals[2000:2100])


def test_the_hash_never_changes():
    assert [int(x) for x in schedule.mix(7, np.arange(2))] == [int(schedule.mix(7, 0)), int(schedule.mix(7, 1))]
    assert int(schedule.mix(0)) == 16294208416658607535


@pytest.mark.parametrize("rates", [[], [1, 0], [-1]])
def test_rates_must_be_positive(rates):
    with pytest.raises(ValueError, match="rates"):
        schedule.Schedule(rates, 0)


# Blocks


def test_blocks_are_shuffled_and_every_record_comes_once_an_epoch(monkeypatch):
    monkeypatch.setattr(schedule, "WINDOW", 20)
    blocks = np.asarray([7, 1, 30, 4, 4, 10, 9])
    total = int(blocks.sum())
    epochs = schedule.shuffled(np.arange(2 * total), total, 5, blocks).reshape(2, total)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(total)] * 2)
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(schedule.shuffled(np.arange(13, 31), total, 5, blocks), epochs[0, 13:31])


def test_few_blocks_are_open_at_once(monkeypatch):
    monkeypatch.setattr(schedule, "WINDOW", 100)
    blocks = np.full(50, 20)
    order = schedule.shuffled(np.arange(1000), 1000, 1, blocks)
    for start in range(0, 1000, 100):
        assert len(set(order[start : start + 100] // 20)) == 5
    assert sorted(order[:100] // 20) != sorted(range(5))
