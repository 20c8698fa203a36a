"""Options of the TPU compiler by type of TPU."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vadapter.planning import topologies
from vadapter.planning.programs import Program, compile_program
from vadapter.training.compiler_options import compiler_options

VMEM = "xla_tpu_scoped_vmem_limit_kib"


def tpu(kind):
    return types.SimpleNamespace(platform="tpu", device_kind=kind)


def test_a_users_options_win_over_those_of_the_type():
    own = compiler_options(tpu("TPU v6 lite"), {})
    assert own
    found = compiler_options(tpu("TPU v6 lite"), {VMEM: 1024, "more": True})
    assert found == {**own, VMEM: 1024, "more": True}
    assert VMEM not in compiler_options(tpu("TPU v6 lite"), {VMEM: None})


@pytest.mark.parametrize(
    ("kind", "other"), [("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")]
)
def test_both_names_of_a_type_mean_the_same(kind, other):
    assert compiler_options(tpu(kind), {}) == compiler_options(tpu(other), {})


def test_an_unknown_type_has_the_users_alone():
    assert compiler_options(tpu("TPU v99"), {VMEM: 1024}) == {VMEM: 1024}


def test_other_platforms_see_none():
    assert compiler_options(jax.devices()[0], {VMEM: 1024}) == {}


@pytest.mark.slow
@pytest.mark.skipif(topologies.libtpu_version() is None, reason="needs libtpu")
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_sharded_weights_are_gathered_beside_the_products_of_other_layers(name, tmp_path):
    topology = topologies.Topology.parse(name)
    mesh = Mesh(np.array(topology.devices()), ("fsdp",))
    rows, matrices = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp", None), (None, None, "fsdp")))
    x = jax.ShapeDtypeStruct((16384, 2048), jnp.bfloat16, sharding=rows)
    weights = [jax.ShapeDtypeStruct((8, 2048, 2048), jnp.bfloat16, sharding=matrices)] * 4

    @jax.jit
    def layers(x, weights):
        def layer(x, matrices):
            for w in matrices:
                x = jnp.tanh(x @ w)
            return x, None

        return jax.lax.scan(layer, x, weights)[0]

    program = Program("layers", lambda: layers.lower(x, weights), compiler_options(mesh.devices[0], {VMEM: 8192}))
    gathers = compile_program(program, topology, mesh, cache_dir=tmp_path).collectives
    waited, whole = (sum(getattr(g, name) for g in gathers) for name in ("exposed_cycles", "cycles"))
    assert waited < 0.3 * whole  # for the first of four alone
