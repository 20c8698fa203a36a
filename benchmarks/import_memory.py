"""How much memory and time does `vadapter import` need, beside the size of what it imports?

python benchmarks/import_memory.py --gib=4
python benchmarks/import_memory.py --source=SmolLM2-135M-Instruct.Q4_1.gguf

A Llama of the asked size is written at random in Hugging Face's format (bf16, shards of 1 GiB), or a model of yours is
taken, and another process imports it. The figure is the peak of that process's resident memory over that of one that
has only loaded the libraries.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP = 128_256, 2048, 32, 8, 64, 8192
SHARD_BYTES = 1 << 30
# What both processes do at their end: say their highest resident memory, in bytes.
PEAK = """
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("PEAK", int(line.split()[1]) * 1024)
"""
IDLE = """
import jax, orbax.checkpoint, rich.progress, safetensors
import vadapter.weights.importer
jax.devices()
"""
IMPORT = """
import sys
import vadapter
vadapter.import_weights(sys.argv[1], sys.argv[2])
"""


def tensors(depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama."""
    yield "model.embed_tokens.weight", (VOCAB, WIDTH)
    yield "model.norm.weight", (WIDTH,)
    for i in range(depth):
        layer = f"model.layers.{i}."
        for name, outputs in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield f"{layer}self_attn.{name}_proj.weight", (outputs * HEAD_DIM, WIDTH)
        yield f"{layer}self_attn.o_proj.weight", (WIDTH, HEADS * HEAD_DIM)
        yield f"{layer}mlp.gate_proj.weight", (MLP, WIDTH)
        yield f"{layer}mlp.up_proj.weight", (MLP, WIDTH)
        yield f"{layer}mlp.down_proj.weight", (WIDTH, MLP)
        yield f"{layer}input_layernorm.weight", (WIDTH,)
        yield f"{layer}post_attention_layernorm.weight", (WIDTH,)


def size(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def make(folder: Path, gib: float) -> None:
    """Writes a checkpoint of about `gib` GiB."""
    from safetensors.numpy import save_file

    table = size((VOCAB, WIDTH))
    of_layer = sum(size(shape) for name, shape in tensors(1)) - table
    depth = max(1, round((gib * 2**30 - table) / of_layer))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": MLP,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shard: dict[str, np.ndarray] = {}
    weight_map: dict[str, str] = {}
    count = 0

    def flush() -> None:
        nonlocal count
        name = f"model-{count:05}.safetensors"
        save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()
        count += 1

    for name, shape in tensors(depth):
        if sum(x.nbytes for x in shard.values()) + size(shape) > SHARD_BYTES:
            flush()
        numbers = rng.standard_normal(shape, np.float32)
        shard[name] = (numbers * 0.02).astype(ml_dtypes.bfloat16)
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def peak(code: str, *argv: str) -> int:
    """Runs code in a process of its own; returns its highest resident memory in bytes."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code + PEAK, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.rpartition("PEAK")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the checkpoint in GiB (default: %(default)s)")
    parser.add_argument("--folder", help="where to work; twice the size is needed (default: a temporary one)")
    parser.add_argument("--source", type=Path, help="a model to import; what `vadapter import` reads")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="import_memory_", dir=args.folder))
    try:
        source, out = args.source or folder / "source", folder / "out"
        if not args.source:
            make(source, args.gib)
        idle = peak(IDLE)
        start = time.perf_counter()
        highest = peak(IMPORT, str(source), str(out))
        seconds = time.perf_counter() - start
        record = json.loads((out / "import.json").read_text())
    finally:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {
                "question": "memory and time of an import",
                "imported_bytes": record["bytes"],
                "idle_bytes": idle,
                "peak_bytes": highest,
                "added_mib": round((highest - idle) / 2**20),
                "seconds": round(seconds, 1),
                "of_imported": round((highest - idle) / record["bytes"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
