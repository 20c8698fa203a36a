"""Plans made by hand: for tests that compile nothing."""

from vadapter.planning.estimate import Work, estimate
from vadapter.planning.plans import Part, Plan
from vadapter.planning.programs import Collective, Compiled, Cycles, Memory, Temporary
from vadapter.planning.search import Setting
from vadapter.planning.topologies import Topology

GIB = 2**30
SETTING = Setting(8, 8, 1, 2, (("encoder", "none"), ("decoder", "dots")), (("encoder", "xla"), ("decoder", "xla")))


def compiled(peak: float = 10 * GIB, **changes) -> Compiled:
    """A step of 1.5e9 cycles on v5e: a second."""
    limit = int(15.75 * GIB)
    fields = dict(
        name="train step",
        topology="v5e:8x8",
        slices=1,
        memory=Memory(4 * GIB, 3 * GIB, 3 * GIB, int(peak) - 4 * GIB, 0, int(peak), limit, peak <= limit),
        flops=150e12,
        cycles=Cycles(matmul=1.2e9, other=0.2e9, collectives=0.1e9),
        hbm_bytes=400e9,
        collectives=(Collective("all-gather", ("fsdp",), 48, 20e9, 0.3e9, 0.1e9, True),),
        largest=(Temporary("bf16[32,336,4096]", 88 * 2**20, "jit(train_step)/decoder/<mlp>", "models/decoder.py:10"),),
        compile_seconds=80.0,
        versions={"jax": "0.10.2", "libtpu": "0.0.51"},
    )
    return Compiled(**(fields | changes))  # type: ignore[arg-type]


def plan(peak: float = 10 * GIB, price: float | None = None, **changes) -> Plan:
    """64 chips, 6,304 useful TFLOP a step: half of what the chips could do in a second."""
    made = compiled(peak, **changes)
    work = Work(2048, 640_000, {"encoder": 2304e12, "decoder": 4000e12}, 3600)
    topology = Topology.parse("v5e:8x8")
    return Plan(
        recipe="paper",
        topology="v5e:8x8",
        slices=1,
        media="images",
        mesh={"dcn": 1, "data": 8, "fsdp": 8, "tensor": 1},
        setting=SETTING,
        parts=(
            Part("adapter/lm", True, "float32", 100_000_000, 400_000_000, 800_000_000),
            Part("decoder", False, "bfloat16", 8_000_000_000, 16_000_000_000, 0),
        ),
        work=work,
        compiled=made,
        estimate=estimate(made, topology, work, price),
        price=price,
    )
