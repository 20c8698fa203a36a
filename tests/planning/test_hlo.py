"""Reading compiled programs: small texts in the forms that the TPU compiler writes."""

import types

import pytest

from vadapter.planning import calibration, costs, hlo, schedule
from vadapter.planning.collectives import Network, exchange, find, first_group
from vadapter.planning.topologies import TPU_TYPES

V5E = TPU_TYPES["v5e"]

# Two nested loops without known_trip_count around one matrix product of 8 x 16 x 32, as compiled for TPU.
NESTED = """HloModule jit_f, is_scheduled=true

FileNames
1 "/venv/lib/site-packages/flax/scan.py"
2 "/repo/model.py"

FunctionNames
1 "scan"
2 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=0 end_column=0}
2 {file_name_id=2 function_name_id=2 line=42 end_line=42 column=0 end_column=0}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%product (p.0: bf16[8,16], p.1: bf16[16,32]) -> bf16[8,32] {
  %p.0 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.1 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf, \
metadata={op_name="jit(f)/layer/dot_general" stack_frame_id=2}
}

%inner_body (s.0: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %s.0 = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[16,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%s.0), index=0
  %x.0 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s.0), index=1
  %w.0 = bf16[16,32]{1,0:T(8,128)(2,1)} get-tuple-element(%s.0), index=2
  %two = s32[]{:T(128)} constant(2)
  %fusion.1 = bf16[8,32]{1,0:T(8,128)(2,1)} fusion(%x.0, %w.0), kind=kOutput, calls=%product, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %next.0 = s32[]{:T(128)} add(%i.0, %two)
  ROOT %t.0 = (s32[], bf16[8,16], bf16[16,32]) tuple(%next.0, %x.0, %w.0)
}

%inner_condition (s.1: (s32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %s.1 = (s32[], bf16[8,16], bf16[16,32]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %end.1 = s32[] constant(11)
  ROOT %lt.1 = pred[] compare(%i.1, %end.1), direction=LT
}

%outer_body (s.2: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %s.2 = (s32[], bf16[8,16], bf16[16,32]) parameter(0)
  %i.2 = s32[] get-tuple-element(%s.2), index=0
  %x.2 = bf16[8,16] get-tuple-element(%s.2), index=1
  %w.2 = bf16[16,32] get-tuple-element(%s.2), index=2
  %one.2 = s32[] constant(1)
  %start.2 = (s32[], bf16[8,16], bf16[16,32]) tuple(%one.2, %x.2, %w.2)
  %while.2 = (s32[], bf16[8,16], bf16[16,32]) while(%start.2), condition=%inner_condition, body=%inner_body
  %next.2 = s32[] add(%i.2, %one.2)
  ROOT %t.2 = (s32[], bf16[8,16], bf16[16,32]) tuple(%next.2, %x.2, %w.2)
}

%outer_condition (s.3: (s32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %s.3 = (s32[], bf16[8,16], bf16[16,32]) parameter(0)
  %i.3 = s32[] get-tuple-element(%s.3), index=0
  %end.3 = s32[] constant(3)
  ROOT %lt.3 = pred[] compare(%i.3, %end.3), direction=LT
}

ENTRY %main (x: bf16[8,16], w: bf16[16,32]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,16], bf16[16,32]) tuple(%zero, %x, %w)
  %while = (s32[], bf16[8,16], bf16[16,32]) while(%start), condition=%outer_condition, body=%outer_body
  ROOT %out = bf16[8,16] get-tuple-element(%while), index=1
}
"""


def network(*sizes: int) -> Network:
    """v5e devices on a line of chips each, axes data and fsdp."""
    devices = tuple(types.SimpleNamespace(coords=(i, 0, 0)) for i in range(sizes[0] * sizes[1]))
    return Network(("data", "fsdp"), sizes, devices, V5E)


def program(*lines: str, before: str = "") -> hlo.Module:
    """A module whose entry computation has these lines."""
    return hlo.Module("\n".join(["HloModule m, is_scheduled=true", before, "ENTRY %main () -> f32[] {", *lines, "}"]))


def test_nested_loops_multiply():
    found = schedule.cost(hlo.Module(NESTED), network(1, 1))
    assert found.flops == 3 * 5 * 2 * 8 * 16 * 32  # 1, 3, .. 9 of the inner loop, which ends at 11
    assert found.matmul == 3 * 5 * 100
    assert found.unknown_loops == 0


def test_on_chip_memory_is_not_hbm():
    found = schedule.cost(hlo.Module(NESTED), network(1, 1))
    assert found.hbm_bytes == 3 * 5 * 2 * (16 * 32 + 8 * 32)  # not the 8 x 16 in S(1)


def test_line_breaks_in_a_kernels_metadata_end_nothing():
    attributes = 'frontend_attributes={kernel_metadata={\n"sizes":"{\\"block_q\\": 384}"\n}}, metadata={op_name="f/k"}'
    module = program(f"  %k = f32[8]{{0}} custom-call(), {attributes}", "  ROOT %n = f32[8]{0} negate(%k)")
    assert [i.name for i in module.entry.instructions] == ["k", "n"]
    assert module.op_name(module.entry.instructions[0]) == "f/k"


@pytest.mark.parametrize(
    ("kernel", "made", "products"),
    [
        ("mha_fwd_residuals", "bf16[8,24,384,88]", 2),
        ("mha_dkv_no_residuals", "bf16[8,1,384,88], bf16[8,1,384,88]", 4),
        ("mha_dkv_segmented_no_residuals", "bf16[8,1,24,384,88], bf16[8,1,384,88]", 5),
        ("mha_dq_no_residuals", "bf16[8,24,384,88]", 3),
    ],
)
def test_splash_attention_counts_its_matrix_products(kernel, made, products):
    """As the compiler names the kernels and shapes of 24 heads and 1 key/value head, of size 88 padded to 128."""
    module = program(
        "  %m = s8[1,1,1] parameter(0)",
        "  %q = bf16[8,24,384,88] parameter(1)",
        "  %k = bf16[8,1,512,88] parameter(2)",
        f'  ROOT %splash_{kernel}.1 = ({made}) custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call"',
    )
    found = schedule.cost(module, network(1, 1))
    assert found.flops == products * 2 * 8 * 24 * 384 * 512 * 128
    assert found.kernels >= found.flops / (V5E.peak_bf16_flops / V5E.clock_hz)
    assert found.unknown_kernels == 0


@pytest.mark.parametrize(
    ("attributes", "flops", "unknown"),
    [
        ('custom_call_target="tpu_custom_call"', 0, 1),
        ('custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"4096"}}', 4096, 0),
        ('custom_call_target="TopK"', 0, 0),
    ],
)
def test_a_kernel_that_declares_no_flops_is_told_of(attributes, flops, unknown):
    module = program("  %x = bf16[512,512]{1,0} parameter(0)", f"  ROOT %k = bf16[512] custom-call(%x), {attributes}")
    found = schedule.cost(module, network(1, 1))
    assert (found.flops, found.unknown_kernels) == (flops, unknown)


@pytest.mark.parametrize("shift", [0, 1])
def test_source_is_the_innermost_line_of_no_package(shift):
    text = NESTED
    for frame in (1, 2):  # versions of the compiler number parents from 0 or from 1
        text = text.replace(f"parent_frame_id={frame}}}", f"parent_frame_id={frame - 1 + shift}}}")
    module = hlo.Module(text)
    fusion = module.by_name("fusion.1")
    assert fusion is not None
    assert module.source(fusion) == "/repo/model.py:42"
    assert module.op_name(fusion) == "jit(f)/layer/dot_general"


def test_source_in_the_metadata_itself():
    module = program('  ROOT %a = f32[] add(%b, %c), metadata={op_name="x" source_file="/repo/a.py" source_line=3}')
    assert module.source(module.entry.root) == "/repo/a.py:3"


def test_known_trip_count_is_believed():
    text = NESTED.replace("body=%inner_body", 'body=%inner_body, backend_config={"known_trip_count":{"n":"7"}}')
    assert schedule.cost(hlo.Module(text), network(1, 1)).flops == 3 * 7 * 2 * 8 * 16 * 32


def test_a_loop_of_unknown_length_counts_once():
    text = NESTED.replace("%end.1 = s32[] constant(11)", "%end.1 = s32[] get-tuple-element(%s.1), index=1")
    found = schedule.cost(hlo.Module(text), network(1, 1))
    assert found.flops == 3 * 2 * 8 * 16 * 32
    assert found.unknown_loops == 1


@pytest.mark.parametrize(
    ("attributes", "group", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", [0, 1, 2, 3], ("fsdp",)),
        ("replica_groups={}", list(range(8)), ("data", "fsdp")),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3], ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4], ("data",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3], ("fsdp",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4], ("data",)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", list(range(8)), ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [0, 1], ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([8]<=[2,4]T(1,0)) {'b'}", [0, 4], ("data",)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3], ("fsdp",)),
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1}}", [0, 4], ("data",)),
    ],
)
def test_groups_of_devices_and_their_axes(attributes, group, axes):
    assert first_group(attributes, 8) == group
    assert network(2, 4).along(group) == axes


@pytest.mark.parametrize(
    ("line", "kind", "received"),
    [
        ("f32[8,64] all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}", "all-gather", 2048 * 3 / 4),
        ("f32[64] all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%a", "all-reduce", 2 * 256 * 3 / 4),
        ("f32[16] reduce-scatter(%x), replica_groups={{0,1,2,3}}, to_apply=%a", "reduce-scatter", 256 * 3 / 4),
        ("f32[64] all-to-all(%x), replica_groups={{0,1,2,3}}", "all-to-all", 256 * 3 / 4),
        (
            "(f32[64], f32[64], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}",
            "collective-permute",
            256,
        ),
        ("(f32[16], f32[64]) all-gather-start(%x), replica_groups={{0,1,2,3}}", "all-gather", 256 * 3 / 4),
    ],
)
def test_bytes_of_collectives(line, kind, received):
    module = program(f"  ROOT %c = {line}")
    found = exchange(module, module.entry.root, module.entry.root, network(1, 4))
    assert (found.kind, found.bytes, found.axes) == (kind, received, ("fsdp",))


def test_a_reduce_scatter_written_as_fused_all_reduce():
    fused = """%rs (p: f32[64]) -> f32[16] {
  %p = f32[64] parameter(0)
  %all-reduce.1 = f32[64] all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[16] dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={16}
}"""
    module = program("  ROOT %f = f32[16] fusion(%x), kind=kCustom, calls=%rs", before=fused)
    inner = find(module, module.entry.root)
    assert inner is not None
    found = exchange(module, module.entry.root, inner, network(1, 4))
    assert (found.kind, found.bytes) == ("reduce-scatter", 256 * 3 / 4)


def asynchronous(between: str) -> schedule.Cost:
    """Cost of a gather of 4 MiB that is under way during some computation."""
    parts = """%start (p: bf16[1,1048576]) -> (bf16[1,1048576], bf16[2,1048576]) {
  %p = bf16[1,1048576] parameter(0)
  %all-gather.1 = bf16[2,1048576] all-gather(%p), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  ROOT %s = (bf16[1,1048576], bf16[2,1048576]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%continue (p.1: bf16[1,1048576]) -> bf16[8,8] {
  %p.1 = bf16[1,1048576] parameter(0)
  ROOT %all-gather.2 = bf16[2,1048576] all-gather(%p.1), channel_id=3, replica_groups={{0,1}}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%done (p.2: bf16[1,1048576]) -> bf16[2,1048576] {
  %p.2 = bf16[1,1048576] parameter(0)
  %all-gather.3 = bf16[2,1048576] all-gather(%p.2), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  ROOT %d = bf16[2,1048576] custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}"""
    module = program(
        "  %x = bf16[1,1048576] parameter(0)",
        "  %a = (bf16[1,1048576], bf16[2,1048576]) fusion(%x), kind=kCustom, calls=%start",
        f"  %b = bf16[8,8] fusion(%x), kind=kOutput, calls=%continue, {between}",
        "  ROOT %c = bf16[2,1048576] fusion(%b), kind=kCustom, calls=%done",
        before=parts,
    )
    return schedule.cost(module, network(1, 2))


def test_communication_hides_behind_computation():
    alone = asynchronous('backend_config={"estimated_cycles":"0"}')
    assert len(alone.exchanges) == 1  # start, computation and done are one gather
    whole = alone.exchanges[0][0].seconds * V5E.clock_hz
    assert alone.exposed == pytest.approx(whole)
    assert whole == pytest.approx((2 * 1048576 / 50e9 + 1e-6) * 1.5e9)
    assert asynchronous('backend_config={"estimated_cycles":"20000"}').exposed == pytest.approx(whole - 20000)
    assert asynchronous('backend_config={"estimated_cycles":"900000"}').exposed == 0


def test_conditionals_take_the_longer_branch():
    branches = "\n".join(
        f"%b{n} (p{n}: f32[8]) -> f32[8] {{\n  ROOT %r{n} = f32[8] fusion(%p{n}), kind=kLoop, calls=%none, "
        f'backend_config={{"estimated_cycles":"{cycles}"}}\n}}\n'
        for n, cycles in enumerate((5, 70, 20))
    )
    module = program("  ROOT %c = f32[8] conditional(%i, %x), branch_computations={%b0, %b1, %b2}", before=branches)
    assert schedule.cost(module, network(1, 1)).cycles == 70


def test_copies_wait_only_for_what_is_left():
    lines = [
        "  %x = f32[819,500000] parameter(0)",  # 1.638e9 bytes: 2 ms at 819 GB/s
        "  %s = (f32[819,500000]{1,0:S(1)}, f32[819,500000]{1,0}, u32[]{:S(2)}) copy-start(%x)",
        '  %f = f32[8]{0:S(1)} fusion(%y), kind=kLoop, calls=%none, backend_config={"estimated_cycles":"1000000"}',
        "  ROOT %d = f32[819,500000]{1,0:S(1)} copy-done(%s)",
    ]
    found = schedule.cost(program(*lines), network(1, 1))
    assert found.copies == pytest.approx(2e-3 * 1.5e9 - 1e6)
    assert found.hbm_bytes == 819 * 500000 * 4


def test_a_kernel_counts_what_it_declares():
    line = '  ROOT %k = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", '
    config = 'backend_config={"custom_call_config":{"cost_estimate":{"flops":"197000000","bytes_accessed":"8"}}}'
    found = schedule.cost(program(line + config), network(1, 1))
    assert found.flops == 197e6
    assert found.kernels == pytest.approx(1e-6 * 1.5e9 / schedule.KERNEL_SHARE)


def test_kernels_of_fused_attention_take_what_their_schedule_says():
    line = '  ROOT %fused_attention_forward.2 = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", '
    config = 'backend_config={"custom_call_config":{"cost_estimate":{"flops":"197000000","bytes_accessed":"8"}}}'
    found = schedule.cost(program(line + config), network(1, 1))
    assert found.kernels == pytest.approx(1e-6 * 1.5e9 / calibration.FUSED_SHARES["v5e"])


def test_slices_of_a_stack_do_not_read_the_stack():
    fused = """%one (p: f32[100,64], i: s32[]) -> f32[1,64] {
  %p = f32[100,64] parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,64] dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,64}
}"""
    lines = [
        "  %w = f32[100,64] parameter(0)",
        "  %n = s32[]{:S(6)} parameter(1)",
        "  ROOT %f = f32[1,64]{1,0:S(1)} fusion(%w, %n), kind=kLoop, calls=%one",
    ]
    module = program(*lines, before=fused)
    assert costs.Costs(module).traffic(module.entry, module.entry.root) == 64 * 4


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "flops"),
    [
        ("f32[8,16]", "f32[16,32]", "f32[8,32]", "dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        # 3 x 3 with borders: 2 of 3 products at each edge
        (
            "f32[1,4,4,5]",
            "f32[3,3,5,6]",
            "f32[1,4,4,6]",
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 10 * 10 * 5 * 6,
        ),
        # A batched product of 4 matrices 8 x 16 x 32, the batch as a dilated dimension
        (
            "f32[4,8,16]",
            "f32[4,16,32]",
            "f32[4,8,32]",
            "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            2 * 4 * 8 * 16 * 32,
        ),
    ],
)
def test_flops_of_products(left, right, result, attributes, flops):
    module = program(
        f"  %x = {left} parameter(0)",
        f"  %y = {right} parameter(1)",
        f"  ROOT %c = {result} convolution(%x, %y), {attributes}",
    )
    assert costs.matmul_flops(module.entry, module.entry.root) == flops


def test_text_of_something_else_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.Module("module @jit_f {}")


def test_work_of_the_sparse_cores_begins_at_its_update():
    body = """%gather (p: f32[1048576]) -> f32[2097152] {
  %p = f32[1048576] parameter(0)
  ROOT %all-gather.1 = f32[2097152] all-gather(%p), channel_id=3, replica_groups={{0,1}}, dimensions={0}
}"""
    busy = 'kind=kLoop, calls=%none, backend_config={"estimated_cycles":"50000"}'
    module = program(
        "  %x = f32[1048576] parameter(0)",
        '  %a = ((), (), (s32[8])) async-start(), async_execution_thread="sparsecore", calls=%gather',
        f"  %f = f32[8]{{0:S(1)}} fusion(%y), {busy}",
        "  %u = ((f32[1048576]), f32[2097152], (s32[8])) async-update(%a, %x)",
        f"  %g = f32[8]{{0:S(1)}} fusion(%y), {busy}",
        "  ROOT %d = f32[2097152] async-done(%u)",
        before=body,
    )
    found = schedule.cost(module, network(1, 2))
    assert [(e.kind, e.bytes, n) for e, n, _, _ in found.exchanges] == [("all-gather", 1048576 * 4, 1)]
    whole = found.exchanges[0][0].seconds * V5E.clock_hz
    assert found.exposed == pytest.approx(whole - 50000)  # only the second computation is beside it


def test_waiting_counts_for_whoever_has_the_link():
    """Two gathers, one after the other; a program that waits for the second first waits for both."""
    group = "replica_groups={{0,1}}, dimensions={0}"
    module = program(
        "  %x = f32[1048576] parameter(0)",
        f"  %a = (f32[1048576], f32[2097152]) all-gather-start(%x), channel_id=1, {group}",
        f"  %b = (f32[1048576], f32[2097152]) all-gather-start(%x), channel_id=2, {group}",
        '  %f = f32[8]{0:S(1)} fusion(%y), kind=kLoop, calls=%none, backend_config={"estimated_cycles":"50000"}',
        "  %d = f32[2097152] all-gather-done(%b)",
        "  ROOT %e = f32[2097152] all-gather-done(%a)",
    )
    found = schedule.cost(module, network(1, 2))
    whole = found.exchanges[0][0].seconds * V5E.clock_hz
    assert [waited for _, _, waited, _ in found.exchanges] == pytest.approx([whole - 50000, whole])
    assert found.exposed == pytest.approx(2 * whole - 50000)
