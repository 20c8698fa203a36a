import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from vadapter.base.errors import UserError
from vadapter.partitioning import DEFAULT_RULES, MeshConfig, Partitioner, constrain, make_mesh
from vadapter.partitioning import mesh as mesh_lib
from vadapter.partitioning.rules import partition_spec

MESH = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A device of a 4 x 4 slice, as ahead-of-time topologies and real ones describe it."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0
    process_index: int = 0


def tpus(slices):
    places = [(x, y, 0) for y in range(4) for x in range(4)]
    return [Tpu(16 * i + j, place, i) for i in range(slices) for j, place in enumerate(places)]


@pytest.fixture
def grid(monkeypatch):
    """Makes meshes of devices that jax does not know: gives the array of devices."""
    monkeypatch.setattr(mesh_lib, "Mesh", lambda devices, axes, axis_types: devices)
    return lambda devices, **sizes: make_mesh(MeshConfig(**sizes), devices)


def test_one_axis_takes_the_devices_that_the_others_leave():
    assert tuple(make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2)).shape.items()) == (
        ("dcn", 1),
        ("data", 2),
        ("fsdp", 2),
        ("tensor", 2),
    )
    assert make_mesh().shape["data"] == 8
    assert make_mesh(MeshConfig(slices=2, fsdp=-1, data=1)).shape["fsdp"] == 4


def test_neighbours_on_the_last_axes_are_neighbours_on_the_links(grid):
    devices = grid(tpus(1), data=4, fsdp=4)[0]
    for row in devices[..., 0]:
        assert len({d.coords[0] for d in row}) == 1 or len({d.coords[1] for d in row}) == 1


def test_the_dcn_axis_alone_crosses_slices(grid):
    for slices in (2, -1):
        devices = grid(tpus(2), slices=slices, fsdp=8)
        assert devices.shape == (2, 2, 8, 1)
        for i, slice_ in enumerate(devices):
            assert {d.slice_index for d in slice_.flat} == {i}


def test_slices_that_are_not_those_of_the_devices(grid):
    for found, wanted in ((2, 1), (1, 2), (2, 4), (2, 0)):
        with pytest.raises(UserError, match=f"slices={wanted}, .*these lie in {found} slice.* to {found}, or to -1"):
            grid(tpus(found), slices=wanted)
    with pytest.raises(UserError, match=r"32 devices \(16 in each of 2 slices\)"):
        grid(tpus(2), slices=2, fsdp=32)


def test_devices_that_are_no_whole_slice(grid):
    with pytest.raises(UserError, match="cannot be laid on these 3 devices .*TPU v4"):
        grid([tpus(1)[i] for i in (0, 1, 4)])


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 8, 1), (16, 1, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(MeshConfig(*sizes))


def spec(names, shape, rules=DEFAULT_RULES):
    return partition_spec(names, shape, MESH, rules, "Parameter adapter/x")


def test_logical_names_become_mesh_axes():
    assert spec(("layers", "embed", "mlp"), (3, 4, 8)) == PartitionSpec(None, "fsdp", "tensor")
    assert spec(("batch", "length"), (8, 5)) == PartitionSpec(("fsdp", "data"), None)
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


def test_a_batch_must_divide_over_its_axes():
    partitioner = Partitioner(MESH)
    batch = {"tokens": np.arange(8)[:, None]}
    placed = partitioner.put_batch(batch)["tokens"]
    np.testing.assert_array_equal(placed, batch["tokens"])
    assert placed.addressable_shards[0].data.shape == (2, 1)
    assert partitioner.host_share == (0, 1)
    with pytest.raises(UserError, match="axes fsdp, dcn, data. Make the batch size a multiple of 4"):
        partitioner.put_batch({"tokens": np.zeros((6, 1))})
    over_slices = Partitioner(make_mesh(MeshConfig(slices=2, data=2, fsdp=2)))
    assert over_slices.batch_ways == 8
    assert over_slices.put_batch(batch)["tokens"].addressable_shards[0].data.shape == (1, 1)


def test_rows_keep_their_places_in_a_product_over_all_axes():
    """The gradient of a layer's input: rows x features, times a kernel that lies on fsdp and tensor."""
    partitioner = Partitioner(MESH)
    rng = np.random.default_rng(0)
    rows, kernel = rng.normal(size=(8, 4)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)

    def product(rows, kernel):
        return constrain(constrain(rows, "batch", "activation_mlp") @ kernel.T, "batch", "activation_mlp")

    with partitioner.activate():
        placed = jax.device_put(kernel, NamedSharding(MESH, spec(("embed", "mlp"), kernel.shape)))
        found = jax.jit(product)(rows, placed)
    np.testing.assert_allclose(found, rows @ kernel.T, rtol=1e-4, atol=1e-5)


def test_activations_are_constrained_only_when_active():
    partitioner = Partitioner(MESH)

    def run(x):
        return constrain(x * 2, "batch", "activation_mlp")

    x = np.ones((8, 4), np.float32)
    with partitioner.activate():
        inside = jax.jit(run)(x)
    assert inside.sharding.spec == PartitionSpec(("fsdp", "data"), "tensor")
    assert len(jax.jit(lambda x: run(x))(x).sharding.device_set) == 1


def test_unboxed_parameters_are_replicated_and_errors_have_the_path():
    partitioner = Partitioner(MESH)
    boxed = {"a": {"w": nn.LogicallyPartitioned(np.zeros((4, 8)), ("embed", "mlp")), "b": np.zeros(3)}}
    shardings = partitioner.param_shardings(boxed)
    assert shardings["a"]["w"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings["a"]["b"].is_fully_replicated
    with pytest.raises(UserError, match="a/w"):
        partitioner.param_shardings({"a": {"w": nn.LogicallyPartitioned(np.zeros((3, 8)), ("embed", "mlp"))}})
