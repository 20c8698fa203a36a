"""Names of slices, and devices to compile for."""

import os
import subprocess
import sys

import pytest

from vadapter.base.errors import UserError
from vadapter.planning import topologies
from vadapter.planning.topologies import TPU_TYPES, Topology

needs_libtpu = pytest.mark.skipif(topologies.libtpu_version() is None, reason="needs libtpu")


@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices"),
    [
        ("v5e:16x16", 1, 256, 256),
        ("v5e:1x1", 1, 1, 1),
        ("v5e:4x4", 2, 32, 32),
        ("v4:2x2x4", 1, 16, 16),
        ("tpu7x:2x2x1", 1, 4, 8),
        ("V6E:8x8 ", 1, 64, 64),
    ],
)
def test_sizes(name, slices, chips, devices):
    topology = Topology.parse(name, slices)
    assert (topology.num_chips, topology.num_devices) == (chips, devices)


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v9:2x2", 1, "Known types are v3, v4, v5e"),
        ("v5e", 1, "v5e:16x16"),
        ("v5e:256", 1, "2 dimensions"),
        ("v5e:3x3", 1, "even numbers"),
        ("v5e:4xx", 1, "found 'v5e:4xx'"),
        ("v5e:0x4", 1, "found 'v5e:0x4'"),
        ("v4:8x8", 1, "v4:2x2x1"),
        ("v5e:4x4", 0, "--slices"),
    ],
)
def test_wrong_names_say_what_is_right(name, slices, message):
    with pytest.raises(UserError, match=message):
        Topology.parse(name, slices)


@pytest.mark.parametrize(
    ("name", "rings"),
    [
        ("v5e:16x16", (True, True)),
        ("v5e:8x16", (False, True)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x2x4", (False, False, False)),
    ],
)
def test_only_whole_pods_and_cubes_close_to_rings(name, rings):
    assert Topology.parse(name).rings == rings


@pytest.mark.parametrize("tpu", TPU_TYPES.values(), ids=lambda t: t.name)
def test_specifications_agree_with_one_another(tpu):
    per_cycle = tpu.peak_bf16_flops / tpu.clock_hz
    assert per_cycle / 2**16 == pytest.approx(round(per_cycle / 2**16), rel=0.02)  # whole matrix units
    assert 0.9 * tpu.hbm_bytes < tpu.usable_hbm_bytes < 1.01 * tpu.hbm_bytes
    for shape in tpu.shapes:
        assert len(Topology.parse(f"{tpu.name}:{shape}").shape) == tpu.dimensions


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topologies, "libtpu_version", lambda: None)
    with pytest.raises(UserError, match=r"vadapter\[tpu\]"):
        Topology.parse("v5e:32x32").devices()


@needs_libtpu
@pytest.mark.parametrize("tpu", TPU_TYPES.values(), ids=lambda t: t.name)
def test_the_compiler_knows_all_types(tpu):
    topology = Topology.parse(f"{tpu.name}:{tpu.shapes[0]}")
    assert len(topology.devices()) == topology.num_devices


@needs_libtpu
def test_slices_are_told_apart():
    devices = Topology.parse("v5e:2x2", slices=2).devices()
    assert [d.slice_index for d in devices] == [0] * 4 + [1] * 4


@needs_libtpu
def test_a_second_process_compiles_too():
    """This process holds libtpu's lock; JAX_PLATFORMS is unset, as on most machines."""
    Topology.parse("v5e:2x2").devices()
    program = (
        "from vadapter.planning.topologies import Topology; import jax;"
        "print(len(Topology.parse('v5e:2x2').devices()), jax.devices()[0].platform)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["4", "cpu"], done.stderr
