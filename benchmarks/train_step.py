"""How fast is a training step of stage 1 on a CPU, beside PyTorch at the same work and what a matrix product allows?

    python benchmarks/train_step.py                                     # ViT-S and SmolLM2 135M
    python benchmarks/train_step.py --sizes=demo --rows=32 --rounds=15  # the size of the demo
    python benchmarks/train_step.py --arms f32_none f32_dots f32_full   # what remat costs

Stage 1 as `gin/experiments/open_stage1.gin` has it: a frozen ViT, a trained linear map, a trained language model,
AdamW, logits at the targets only; random weights and inputs, no padding. The peer is the same in PyTorch: transformers'
SigLIP tower and `LlamaForCausalLM` with scaled dot-product attention, the ViT under `no_grad`, fused AdamW, no
gradient checkpointing. It fails if the peer trains or freezes another number of parameters.

An arm is a dtype of computation and what is kept for the backward pass: `f32_none` keeps all, `f32_dots` the matrix
products, `f32_full` recomputes all; `torch_f32`, and `torch_bf16`, autocast. All arms are timed in turn, one of each a
round, and with them `product`, a matrix product in f32, whose rate is the ceiling. Figures are of the wall and of the
CPUs' seconds, which say more where others use the machine. It prints one JSON object. The arms `torch_*` need torch
and transformers.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import paired
from gpu_stages import record
from vadapter.base.host_memory import keep_freed_memory

PROMPT, TARGETS = 16, 32
ARMS = ("f32_none", "f32_dots", "bf16_none", "torch_f32", "torch_bf16")
SIZE = 1024  # of the matrices whose product is the ceiling


def config(sizes: str, dtype: str = "float32", remat: str = "none"):
    """Returns the configuration of the model: `open` has published sizes, `demo` those of the demo."""
    from vadapter.models import variants
    from vadapter.models.adapters import MlpConfig
    from vadapter.models.decoder import DecoderConfig
    from vadapter.models.vit import ViTConfig
    from vadapter.models.vlm import VLMConfig

    if sizes == "open":
        encoder = ViTConfig(112, 14, 384, 12, 6, 1536, dtype=dtype)
        decoder: Any = variants.decoder("smollm2_135m", dtype=dtype, remat=remat)
    else:
        encoder = ViTConfig(48, 8, 96, 3, 4, 384, dtype=dtype)
        # gin/models/scenes.gin, with Llama's block, which the peer has.
        block: dict[str, Any] = {"norm": "rms", "activation": "silu", "parallel_block": False}
        decoder = DecoderConfig(512, 64, 2, 2, 2, 32, 192, **block, dtype=dtype, remat=remat)
    return VLMConfig(decoder, encoder, MlpConfig(depth=1, dtype=dtype))


def inputs(model: Any, rows: int, targets: int = TARGETS, frames: int = 1) -> Any:
    """Makes rows of a picture or a video, a prompt and a caption."""
    from vadapter.base.batch import Batch

    rng = np.random.default_rng(0)
    visual, vocab_size, size = model.num_visual_tokens(frames), model.decoder.vocab_size, model.encoder.image_size
    slots = np.tile(np.arange(visual + PROMPT + targets, dtype=np.int32), (rows, 1))
    index = np.where(slots < visual, slots, -1)
    tokens = np.where(index < 0, rng.integers(1, vocab_size, slots.shape, np.int32), 0)
    return Batch(
        tokens=tokens,
        segment_ids=np.ones_like(slots),
        positions=slots,
        media_index=index,
        media=rng.integers(0, 256, (rows, 1, frames, size, size, 3), np.uint8),
        target_positions=slots[:, -targets - 1 : -1],
        target_ids=tokens[:, -targets:],
        target_weights=np.ones((rows, targets), np.float32),
    )


def ours(
    model: Any, rows: int, batch: Any = None, trainable: tuple[str, ...] = ("adapter/.*", "decoder/.*")
) -> tuple[Callable[[], None], dict[str, Any]]:
    """Returns a function that makes one update and waits for it, and facts: parameters, useful and compiled FLOPs."""
    import jax
    from flax import linen as nn

    from vadapter.base import trees
    from vadapter.models.vlm import VLM
    from vadapter.training.program import Program

    network, batch = VLM(model), inputs(model, rows) if batch is None else batch
    dtype = model.decoder.dtype
    program = Program(network, batch, trainable=trainable, frozen_dtype=dtype, steps=20_000)
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), batch)["params"])
    state, frozen = program.start(params)
    del params
    compiled = program.lower().compile()
    needed = model.flops(trees.unflatten(program.shapes), program.storage.trained)(batch)
    memory: Any = compiled.memory_analysis()
    trained, kept = (sum(x.size for x in trees.flatten(tree).values()) for tree in program.abstract_params)
    facts = {
        "parameters": {"trained": trained, "frozen": kept},
        "useful_tflop": round(sum(needed.values()) / 1e12, 6),
        "compiled_tflop": round(float((compiled.cost_analysis() or {}).get("flops", 0)) / 1e12, 4),
        "planned_gib": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 3),
    }
    kept_state = [state]

    def update() -> None:
        kept_state[0], metrics = compiled(kept_state[0], frozen, program.put(batch))
        jax.block_until_ready(metrics)

    return update, facts


def theirs(model: Any, rows: int, autocast: bool) -> tuple[Callable[[], None], dict[str, Any]]:
    """Returns the same in PyTorch."""
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    from gpu_stages import peer_model

    e, d = model.encoder, model.decoder
    language = LlamaConfig(
        vocab_size=d.vocab_size,
        hidden_size=d.width,
        intermediate_size=d.mlp_dim,
        num_hidden_layers=d.depth,
        num_attention_heads=d.num_heads,
        num_key_value_heads=d.num_kv_heads,
        head_dim=d.head_dim,
        tie_word_embeddings=d.tied_head,
        attn_implementation="sdpa",
    )
    encoder = peer_model.vision(e, torch.float32).requires_grad_(False).eval()
    decoder = LlamaForCausalLM._from_config(language, dtype=torch.float32).train()
    adapter = torch.nn.Linear(e.width, d.width)
    trained = [*adapter.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=1e-4, fused=True)
    batch = inputs(model, rows)
    pixels = torch.from_numpy(np.moveaxis(np.array(batch.media[:, 0, 0]), -1, 1).copy())
    text = torch.from_numpy(np.array(batch.tokens)[:, -PROMPT - TARGETS :]).long()
    targets = text[:, -TARGETS:]

    def update() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with torch.no_grad():
                visual = encoder(pixel_values=pixels.float() / 127.5 - 1).last_hidden_state
            x = torch.cat([adapter(visual), decoder.get_input_embeddings()(text)], dim=1)
            hidden = decoder.model(inputs_embeds=x, use_cache=False).last_hidden_state
            logits = decoder.lm_head(hidden[:, -TARGETS - 1 : -1])
        F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    frozen = sum(x.numel() for x in encoder.parameters())
    return update, {"parameters": {"trained": sum(x.numel() for x in trained), "frozen": frozen}}


def make(name: str, sizes: str, rows: int) -> tuple[Callable[[], None], dict[str, Any]]:
    """Returns the update of an arm, and facts of it."""
    first, second = name.split("_")
    if first == "torch":
        return theirs(config(sizes), rows, second == "bf16")
    return ours(config(sizes, {"f32": "float32", "bf16": "bfloat16"}[first], second), rows)


def product() -> Callable[[], None]:
    """Returns a function that makes a matrix product in f32."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((SIZE, SIZE))
    times = jax.jit(lambda a: a @ a)
    return lambda: jax.block_until_ready(times(a))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="open", choices=["open", "demo"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()  # as training on a CPU does
    arms, facts = {}, {}
    for name in args.arms:
        arms[name], facts[name] = make(name, args.sizes, args.rows)
    counts = {name: fact["parameters"] for name, fact in facts.items()}
    first = counts[args.arms[0]]
    for name, count in counts.items():
        # SigLIP's and our ViT differ in a bias or a norm at most.
        same = all(abs(count[kind] / first[kind] - 1) < 1e-3 for kind in first)
        assert same, f"{name} has {count}, {args.arms[0]} has {first}"
    both = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
    found: Any = paired.rounds(arms | {"product": product()}, args.rounds, both)  # type: ignore[arg-type]
    useful = max((fact.get("useful_tflop", 0) for fact in facts.values()), default=0)
    result: dict[str, Any] = {"question": "seconds of a training step of stage 1, ours beside PyTorch"}
    for i, clock in enumerate(("wall", "cpu")):
        seconds = {name: np.asarray(times)[:, i] for name, times in found.items()}
        limit = useful * 1e12 / (2 * SIZE**3) * seconds["product"]  # the useful FLOPs at the product's rate
        figures: dict[str, Any] = {
            "seconds": paired.medians(seconds),
            "seconds_at_the_ceiling": float(np.median(limit)),
        }
        if useful:
            figures["share_of_the_ceiling"] = {n: paired.ratio(limit, seconds[n]) for n in args.arms}
        if "torch_f32" in arms:
            mine = [n for n in args.arms if n != "torch_f32"]
            figures["times_torch_f32"] = {n: paired.ratio(seconds["torch_f32"], seconds[n]) for n in mine}
        result[clock] = figures
    result |= {
        "facts": facts,
        "sizes": {"model": args.sizes, "rows": args.rows, "prompt": PROMPT, "targets": TARGETS, "rounds": args.rounds},
        "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs",
        "date": time.strftime("%Y-%m-%d"),
        "versions": record.versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
