"""What a run takes of its devices is told before it starts, and refused where it cannot fit."""

import dataclasses

import jax
import pytest

from tests.training import small
from vadapter.base.errors import UserError
from vadapter.runs import account


@pytest.fixture(scope="module")
def program():
    return small.program()


def test_bytes_are_those_of_the_arrays(program):
    state, frozen = program.start(small.params())
    batch = program.put(small.batch(0))
    found = account.account(program)

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert found.trained == held(state.params) and found.frozen == held(frozen) and found.batch == held(batch)
    assert found.trained + found.optimizer == held(state)
    assert found.limit and found.limit > found.least


def test_a_run_that_fits_says_what_it_takes(program):
    told = []
    account.tell(program, 1e9, 10, told.append)
    assert len(told) == 1 and "trained weights" in told[0] and "optimizer" in told[0]


def test_a_run_that_cannot_fit_is_refused_with_what_would_help(program, monkeypatch):
    monkeypatch.setattr(account, "limit", lambda device: 100)
    with pytest.raises(UserError, match="cannot fit.*100 B.*MeshConfig.fsdp"):
        account.tell(program, 1e9, 10, pytest.fail)


def test_devices_that_say_nothing_are_not_refused(program, monkeypatch):
    monkeypatch.setattr(account, "limit", lambda device: None)
    told = []
    account.tell(program, 1e9, 10, told.append)
    assert " of " not in told[0].split(":")[0]


def test_time_is_told_of_known_cards_alone(program):
    found = dataclasses.replace(account.account(program), device="NVIDIA H100 80GB HBM3")
    assert account._step_seconds(program, found, 1e12) is None  # it runs on a CPU
