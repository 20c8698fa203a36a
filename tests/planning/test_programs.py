"""Small programs through the real TPU compiler."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vadapter.planning import programs, topologies
from vadapter.planning.programs import Compiled, Program, compile_program, needed_memory
from vadapter.planning.topologies import Topology

pytestmark = pytest.mark.slow

GIB = 2**30
TOPOLOGY = Topology("v5e:2x2")
needs_libtpu = pytest.mark.skipif(topologies.libtpu_version() is None, reason="needs libtpu")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh(np.array(TOPOLOGY.devices()).reshape(2, 2), ("data", "fsdp"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


def layers(x, weights):
    """A stack of layers as a scan."""
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


def lowered(mesh: Mesh, f, *shapes) -> jax.stages.Lowered:
    """Lowers for (shape, axes) of bf16 arguments."""
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
        for shape, axes in shapes
    ]
    return jax.jit(f).lower(*arguments)


def stack(mesh: Mesh) -> Program:
    """Six layers of 256 x 256, sharded over fsdp; 512 rows over all devices."""
    x = ((512, 256), (("data", "fsdp"), None))
    return Program("stack", lambda: lowered(mesh, layers, x, ((6, 256, 256), (None, "fsdp", None))))


@pytest.fixture(scope="module")
def compiled(mesh, folder) -> Compiled:
    return compile_program(stack(mesh), TOPOLOGY, mesh, folder)


@needs_libtpu
def test_flops_of_a_scan(compiled):
    assert compiled.flops == 6 * 2 * (512 // 4) * 256 * 256
    assert compiled.unknown_loops == 0


@needs_libtpu
def test_gathers_of_a_scan(compiled):
    gathers = [c for c in compiled.collectives if c.kind == "all-gather"]
    assert [(c.axes, c.count, c.in_loop) for c in gathers] == [(("fsdp",), 6, True)]
    assert gathers[0].bytes == 6 * 256 * 256 * 2 / 2  # a device lacks half of each layer
    assert 0 < gathers[0].exposed_cycles <= compiled.cycles.collectives <= compiled.cycles.total


@needs_libtpu
def test_memory_of_a_small_program(compiled):
    assert compiled.fits
    assert compiled.memory.arguments == 128 * 256 * 2 + 6 * 128 * 256 * 2
    assert compiled.memory.outputs == 128 * 256 * 2
    assert compiled.memory.peak < 2**24
    assert compiled.memory.limit == pytest.approx(15.75 * GIB)


@needs_libtpu
def test_a_result_is_found_again(compiled, mesh, folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(programs, "_compile", refuse)
    again = compile_program(stack(mesh), TOPOLOGY, mesh, folder)
    assert again == compiled


@needs_libtpu
def test_results_are_kept_for_each_set_of_compiler_options(compiled, mesh, tmp_path, monkeypatch):
    compilations = []
    monkeypatch.setattr(programs, "_compile", lambda program, *_: compilations.append(program.options) or compiled)
    larger = {"xla_tpu_scoped_vmem_limit_kib": 20480}
    for options in ({}, larger, {}):
        compile_program(dataclasses.replace(stack(mesh), options=options), TOPOLOGY, mesh, tmp_path)
    assert compilations == [{}, larger]


@needs_libtpu
@pytest.mark.parametrize("content", ["{", '{"name": "stack"}'])
def test_a_damaged_result_is_made_again(compiled, mesh, folder, monkeypatch, content):
    monkeypatch.setattr(programs, "_compile", lambda *_: compiled)
    (path,) = folder.glob("*.json")
    path.write_text(content)
    assert compile_program(stack(mesh), TOPOLOGY, mesh, folder) == compiled
    assert Compiled.from_json(json.loads(path.read_text())) == compiled


@needs_libtpu
def test_too_large_a_program_names_its_largest_arrays(mesh, tmp_path):
    def keep(x, weights):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), jnp.tanh(h @ w)), x, weights)

    x = ((2**17, 2048), ("fsdp", None))
    program = Program("large", lambda: lowered(mesh, keep, x, ((68, 2048, 2048), ())))
    found = compile_program(program, TOPOLOGY, mesh, tmp_path)
    assert not found.fits
    assert found.memory.limit == pytest.approx(15.75 * GIB)
    assert found.memory.peak == pytest.approx(18.28 * GIB, rel=0.01)  # 17 of activations, 0.8 of arguments, 0.5
    assert found.memory.arguments == 2**16 * 2048 * 2 + 68 * 2048 * 2048 * 2
    assert found.largest[0].shape == "bf16[68,65536,2048]"
    assert found.largest[0].bytes == 17 * GIB
    assert "dot_general" in found.largest[0].op
    assert "test_programs.py:" in found.largest[0].source


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_other_types(name, tmp_path):
    """Their texts differ: cores that share a device, sparse cores that communicate."""
    topology = Topology.parse(name)
    mesh = Mesh(np.array(topology.devices()).reshape(-1, 2), ("data", "fsdp"))
    found = compile_program(stack(mesh), topology, mesh, tmp_path)
    assert found.flops == 6 * 2 * (512 // mesh.size) * 256 * 256
    assert [(c.kind, c.axes, c.count) for c in found.collectives] == [("all-gather", ("fsdp",), 6)]


@needs_libtpu
def test_communication_between_slices(tmp_path):
    topology = Topology("v5e:2x2", slices=2)
    mesh = Mesh(np.array(topology.devices()).reshape(2, 4), ("dcn", "fsdp"))

    def gradient(weights, x):
        return jax.grad(lambda w: layers(x, w).astype(jnp.float32).sum())(weights)

    shapes = [((2, 256, 256), (None, "fsdp", None)), ((512, 256), (("dcn", "fsdp"), None))]
    found = compile_program(Program("step", lambda: lowered(mesh, gradient, *shapes)), topology, mesh, tmp_path)
    between = [c for c in found.collectives if c.axes == ("dcn",)]
    assert {c.kind for c in between} == {"all-reduce"}
    assert sum(c.count for c in between) == 2  # one for each layer
    assert any(c.kind == "all-gather" and c.axes == ("fsdp",) for c in found.collectives)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (25.5G) exceeds available HBM (15.75G). HLO module: jit_f.",
            (int(25.5 * GIB), int(15.75 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm",
            (int(17.5 * GIB), int(15.75 * GIB)),
        ),
        ("Ran out of memory in memory space vmem. Used 17.50M of 16.00M vmem.", None),
        ("INVALID_ARGUMENT: Mosaic failed", None),
    ],
)
def test_what_the_compiler_says_of_too_large_programs(message, found):
    assert needed_memory(message) == found
