"""What a compiled step means."""

import dataclasses

import pytest

from tests.planning.plans_made import GIB, compiled, plan
from vadapter.planning import calibration
from vadapter.planning.estimate import communication_seconds
from vadapter.planning.programs import Collective
from vadapter.planning.topologies import Topology


def test_time_rates_and_cost_follow_from_the_cycles():
    e = plan(price=1.2).estimate
    assert e is not None
    assert e.step_seconds == pytest.approx(1.0)  # 1.5e9 cycles at 1.5 GHz
    assert sum(e.by_kind.values()) == pytest.approx(e.step_seconds)
    assert e.mfu == pytest.approx(0.5)  # 6,304 of 64 * 197 TFLOP
    assert e.tokens_per_s_per_chip == pytest.approx(10_000)
    assert e.hours == pytest.approx(1.0)  # 3,600 steps
    assert e.cost_usd == pytest.approx(64 * 1.2)
    assert e.compute_seconds == pytest.approx(150 / 197)
    assert e.memory_seconds == pytest.approx(400 / 819)
    assert e.communication_share == pytest.approx(0.1 / 1.5)


def test_the_calibration_slows_everything_by_its_factor():
    e = plan(price=2.0).estimate
    assert e is not None and e.cost_usd and e.calibrated_cost_usd
    factor = calibration.PALIGEMMA.factor
    assert factor == pytest.approx(0.74, abs=0.01)
    assert e.calibrated_seconds == pytest.approx(e.step_seconds / factor)
    assert e.calibrated_mfu == pytest.approx(e.mfu * factor)
    assert e.calibrated_hours == pytest.approx(e.hours / factor)
    assert e.calibrated_cost_usd == pytest.approx(e.cost_usd / factor)


def test_the_measured_time_is_that_of_the_published_speed():
    # 32 examples a chip of 256 image and 128 text tokens, at 5,189 tokens/s/chip.
    assert calibration.PALIGEMMA.measured_seconds == pytest.approx(32 * 384 / 5189, abs=0.005)


def test_without_a_price_there_is_no_cost_and_without_room_no_estimate():
    e = plan().estimate
    assert e is not None and e.cost_usd is None and e.calibrated_cost_usd is None
    assert plan(peak=20 * GIB).estimate is None


def test_what_crosses_slices_goes_through_the_network_of_the_host():
    topology = Topology.parse("v5e:8x8", 2)
    near = compiled(collectives=(Collective("all-reduce", ("data",), 1, 1e9, 0, 0, False),))
    far = dataclasses.replace(near, collectives=(Collective("all-reduce", ("dcn",), 1, 1e9, 0, 0, False),))
    tpu = topology.type
    assert communication_seconds(near, topology) == pytest.approx(1e9 / (tpu.ici_bytes_per_s * tpu.ici_links))
    assert communication_seconds(far, topology) == pytest.approx(1e9 / (tpu.dcn_bytes_per_s / tpu.chips_per_host))
