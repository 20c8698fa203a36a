import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from vadapter.errors import UserError
from vadapter.partitioning import DEFAULT_RULES, MeshConfig, Partitioner, constrain, make_mesh
from vadapter.partitioning.rules import partition_spec

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_one_axis_takes_the_devices_that_the_others_leave():
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 8, 1), (16, 1, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(MeshConfig(*sizes))


def spec(names, shape, rules=DEFAULT_RULES):
    return partition_spec(names, shape, MESH, rules, "Parameter adapter/x")


def test_logical_names_become_mesh_axes():
    assert spec(("layers", "embed", "mlp"), (3, 4, 8)) == PartitionSpec(None, "fsdp", "tensor")
    assert spec(("batch", "length"), (8, 5)) == PartitionSpec(("data", "fsdp"), None)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    assert partition_spec(("embed",), (3,), one, DEFAULT_RULES, "x") == PartitionSpec(None)


@pytest.mark.parametrize(
    ("names", "shape", "rules", "words"),
    [
        (("embed",), (5,), DEFAULT_RULES, "adapter/x .*5 does not divide"),
        (("embed", "embed"), (4, 4), DEFAULT_RULES, "two dimensions"),
        (("width",), (4,), DEFAULT_RULES, "no rule"),
        (("embed",), (4,), (("embed", "model"),), "mesh axes"),
    ],
)
def test_rules_that_do_not_work_name_the_parameter_or_rule(names, shape, rules, words):
    with pytest.raises(UserError, match=words):
        spec(names, shape, rules)


def test_a_batch_must_divide_over_data_and_fsdp():
    partitioner = Partitioner(MESH)
    batch = {"tokens": np.arange(8)[:, None]}
    placed = partitioner.put_batch(batch)["tokens"]
    np.testing.assert_array_equal(placed, batch["tokens"])
    assert placed.addressable_shards[0].data.shape == (2, 1)
    with pytest.raises(UserError, match="multiple of 4"):
        partitioner.put_batch({"tokens": np.zeros((6, 1))})


def test_activations_are_constrained_only_when_active():
    partitioner = Partitioner(MESH)

    def run(x):
        return constrain(x * 2, "batch", "activation_mlp")

    x = np.ones((8, 4), np.float32)
    with partitioner.activate():
        inside = jax.jit(run)(x)
    assert inside.sharding.spec == PartitionSpec(("data", "fsdp"), "tensor")
    assert len(jax.jit(lambda x: run(x))(x).sharding.device_set) == 1


def test_unboxed_parameters_are_replicated_and_errors_have_the_path():
    partitioner = Partitioner(MESH)
    boxed = {"a": {"w": nn.LogicallyPartitioned(np.zeros((4, 8)), ("embed", "mlp")), "b": np.zeros(3)}}
    shardings = partitioner.param_shardings(boxed)
    assert shardings["a"]["w"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings["a"]["b"].is_fully_replicated
    with pytest.raises(UserError, match="a/w"):
        partitioner.param_shardings({"a": {"w": nn.LogicallyPartitioned(np.zeros((3, 8)), ("embed", "mlp"))}})
