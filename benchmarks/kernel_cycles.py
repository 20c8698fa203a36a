"""How long do the kernels of fused attention take by the schedule that the TPU compiler writes for them?

    python benchmarks/kernel_cycles.py
    python benchmarks/kernel_cycles.py --topologies v6e:8x8 --length 336 --heads 24

Needs libtpu, no TPU. The compiler puts no estimate into a program for a hand-written kernel, but it can write out the
instructions of each: bundles, one a cycle if nothing is waited for. A kernel is a loop over rows and heads, so its
cycles are the bundles between the loop's two ends times its turns. Parts that run for the first or last head alone
count in each turn, and transfers of memory beside the loop are not seen: an estimate, as all of the compiler's. It
prints one JSON object; `share_of_peak` is what `vadapter.planning.schedule` takes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOPOLOGIES = ("v4:8x8x8", "v5e:8x8", "v5p:4x4x8", "v6e:8x8", "tpu7x:4x4x4")
_PRODUCTS = {"forward": 2, "backward": 5}


def compile_kernels(topology: str, rows: int, length: int, heads: int, dim: int) -> None:
    """Compiles attention and its gradients for one device; runs in a process of its own."""
    from vadapter.planning.topologies import Topology, prepare

    prepare()  # before anything uses a device
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from vadapter.models import fused
    from vadapter.models.positions import Rotation

    device = SingleDeviceSharding(Topology.parse(topology).devices()[0])

    def struct(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def both(query, key, mask, rotation, gradient):
        def attention(query, key, value):
            return fused.attention(query, key, value, mask, rotation, scale=dim**-0.5)

        out, backward = jax.vjp(attention, query, key, key)
        return out, backward(gradient)

    query, key = struct(rows, length, heads, dim), struct(rows, length, 1, dim)
    angles = struct(rows, length, dim // 2, dtype=jnp.float32)
    mask = struct(rows, 1, length, length, dtype=jnp.bool_)
    jax.jit(both).lower(query, key, mask, Rotation(angles, angles), query).compile()


def cycles(folder: Path, kernel: str) -> int:
    """Reads the cycles of a kernel from the compiler's files."""
    (path,) = [p for p in folder.glob(f"*fused_attention_{kernel}*-final_bundles.txt") if "analysis" not in p.name]
    text = path.read_text()
    (begin,) = re.findall(r"^\s*(0x[0-9a-f]+) LB:", text, re.M)
    ((end, turns),) = re.findall(r"^\s*(0x[0-9a-f]+)\s.*totalorder %\w+, (\d+) /\* loop exit test", text, re.M)
    return (int(end, 16) - int(begin, 16)) * int(turns)


def measure(topology: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns milliseconds and shares of the peak on a type of TPU."""
    from vadapter.planning.topologies import Topology

    kind = Topology.parse(topology).type
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        sizes = [str(x) for x in (args.rows, args.length, args.heads, args.dim)]
        command = [sys.executable, __file__, "--compile", topology, *sizes]
        subprocess.run(command, check=True, env=os.environ | {"LIBTPU_INIT_ARGS": dump})
        seconds = {kernel: cycles(Path(folder), kernel) / kind.clock_hz for kernel in _PRODUCTS}
    product = 2.0 * args.rows * args.heads * args.length**2 * args.dim
    ideal = {kernel: count * product / kind.peak_bf16_flops for kernel, count in _PRODUCTS.items()}
    return {
        "milliseconds": {kernel: round(1e3 * x, 4) for kernel, x in seconds.items()},
        "share_of_peak": round(sum(ideal.values()) / sum(seconds.values()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="*", default=TOPOLOGIES)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=336, help="slots of a row (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--dim", type=int, default=256, help="channels of a head (default: %(default)s)")
    parser.add_argument("--compile", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        return compile_kernels(args.compile[0], *map(int, args.compile[1:]))
    sizes = {name: getattr(args, name) for name in ("rows", "length", "heads", "dim")}
    print(json.dumps({**sizes, "topologies": {name: measure(name, args) for name in args.topologies}}, indent=1))


if __name__ == "__main__":
    main()
