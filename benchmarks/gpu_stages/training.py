"""Stages on the training step: what the card can do, what a step of ours takes of it, and what int8 saves."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gpu_stages import model
from gpu_stages.record import Record, gib, measured_ceiling, rates, repeats_for, times
from vadapter.models import flops
from vadapter.training import freezing

# Rows of the batches that are tried, the first first. Larger ones follow while they fit and pay.
SIZES = {("vit_g", "palm_8b"): (32, 64, 128), ("vit_l", "palm_1b"): (64, 128, 256)}


def describe_device(record: Record) -> None:
    """Notes the device."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    record.note(device=device.device_kind, platform=device.platform, memory_gib=gib(stats.get("bytes_limit", 0)))


def ceiling(record: Record, directory: str) -> None:
    """Matrix products on random data and device-to-device copies, in jax and, as a check, in PyTorch."""
    describe_device(record)
    size = 256 if record.small else 8192
    key = jax.random.key(0, impl="rbg")
    calls = 2 if record.small else 20
    a, b = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in jax.random.split(key))
    product = jax.jit(lambda a, b: a @ b)

    def products(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready([run() for _ in range(calls)][-1])

    with record.figure("matmul_jax", size=size, dtype="bfloat16") as entry:
        entry |= times(products(lambda: product(a, b)), 7, calls)
        entry["tflops"] = _rate(2e-12 * size**3, entry)
    with record.figure("copy_jax", bytes=(1 << 20) if record.small else (1 << 32)) as entry:
        x = jnp.ones(entry["bytes"] // 4, jnp.float32)
        negate = jax.jit(lambda x: -x)  # a copy proper might be left out by the compiler
        entry |= times(products(lambda: negate(x)), 5, calls)
        entry["tbytes_per_s_read_and_written"] = _rate(2e-12 * entry["bytes"], entry)
    if not record.small:
        # The decoder's widest product at 32 rows of 336 tokens: a ceiling nearer to the step's own shapes.
        with record.figure("matmul_jax_decoder", shape=[10_752, 4096, 16_384], dtype="bfloat16") as entry:
            x, w = jnp.ones((10_752, 4096), jnp.bfloat16), jax.random.normal(key, (4096, 16_384), jnp.bfloat16)
            x = x * jax.random.normal(key, x.shape, jnp.bfloat16)
            entry |= times(products(lambda: product(x, w)), 7, calls)
            entry["tflops"] = _rate(2e-12 * 10_752 * 4096 * 16_384, entry)
        del x, w
    del a, b
    _ceiling_torch(record, size, calls)


def _ceiling_torch(record: Record, size: int, calls: int) -> None:
    try:
        import torch
    except ImportError:
        return record.skip("torch", "torch is not installed")
    if not torch.cuda.is_available():
        return record.skip("torch", "torch sees no GPU")

    def loop(run: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            for _ in range(calls):
                run()
            torch.cuda.synchronize()

        return timed

    with record.figure("matmul_torch", size=size, dtype="bfloat16") as entry:
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        entry |= times(loop(lambda: torch.mm(a, b)), 7, calls)
        entry["tflops"] = _rate(2e-12 * size**3, entry)
    with record.figure("copy_torch", bytes=1 << 32) as entry:
        x = torch.ones(1 << 30, device="cuda")
        y = torch.empty_like(x)
        entry |= times(loop(lambda: y.copy_(x)), 5, calls)
        entry["tbytes_per_s_read_and_written"] = _rate(2e-12 * 2**32, entry)


def _rate(count: float, entry: dict[str, Any]) -> float:
    return float(f"{count / (entry['median_ms'] / 1e3):.5g}")


class _Sweep:
    def __init__(self, record: Record, directory: str, encoder: str, decoder: str):
        describe_device(record)
        self.record, self.names = record, (encoder, decoder)
        self.peak = flops.peak_flops(jax.devices()[0].device_kind)
        self.ceiling = measured_ceiling(directory)
        start = time.monotonic()
        self.steps = model.Steps.make(model.config(encoder, decoder, record.small))
        jax.block_until_ready(self.steps.trainable)
        counts = freezing.summarize(self.steps.trainable, self.steps.frozen, {})
        record.note(
            encoder=encoder,
            decoder=decoder,
            text_tokens=model.PROMPT + model.TARGETS,
            soft_tokens=self.steps.config.num_visual_tokens(1),
            parameters={f"{x.part}{' (trained)' * x.trainable}": x.parameters for x in counts},
            weights_gib=gib(sum(x.weight_bytes for x in counts)),
            parameters_made_s=round(time.monotonic() - start, 1),
            ceiling_tflops=self.ceiling and self.ceiling / 1e12,
            published_tflops=self.peak and self.peak / 1e12,
        )
        self.longest = 0.0

    def measure(self, name: str, rows: int, attention: str, remat: str, accumulate: int = 1, **changes: Any) -> dict:
        """Measures one figure unless time is short."""
        if self.record.left < 1.15 * self.longest:
            self.record.skip(name, "no time left")
            return {}
        start = time.monotonic()
        config = model.config(*self.names, self.record.small, attention, remat)
        if changes:
            config = dataclasses.replace(config, **changes)
        settings = {"rows": rows, "attention": attention, "remat": remat, "accumulate": accumulate}
        with self.record.figure(name, **settings) as entry:
            self.steps.measure(config, rows, repeats_for, entry, accumulate)
            rates(entry, rows, self.steps.flops(rows), self.ceiling, self.peak)
        self.longest = max(self.longest, time.monotonic() - start)
        return entry


def _fits(entry: dict[str, Any], factor: float) -> bool:
    """Whether a batch `factor` times as large should fit, by what the compiler planned for this one."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit or "planned_gib" not in entry:
        return True
    return entry["planned_gib"] + (factor - 1) * entry["temporary_gib"] < limit / 2**30


def step(record: Record, directory: str, encoder: str, decoder: str) -> None:
    """A stage-2 step: batch sizes, then attention and recomputation at the best of them."""
    sweep = _Sweep(record, directory, encoder, decoder)
    sizes = (2,) if record.small else SIZES[encoder, decoder]
    best: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for rows in sizes:
        name = f"xla_dots_{rows}"
        if last and not _fits(last, rows / last["rows"]):
            record.skip(name, f"would not fit: {last['rows']} rows need {last['planned_gib']} GiB")
            break
        last = sweep.measure(name, rows, "xla", "dots")
        if "examples_per_s" not in last:
            break
        if best and last["examples_per_s"] < 1.03 * best["examples_per_s"]:
            best = max(best, last, key=lambda entry: entry["examples_per_s"])
            break
        best = last
    if not best:
        best = sweep.measure(f"xla_dots_{sizes[0] // 2}", sizes[0] // 2, "xla", "dots")
    if "examples_per_s" not in best:
        return
    attention = "xla"
    if jax.default_backend() == "gpu":
        found = sweep.measure(f"cudnn_dots_{best['rows']}", best["rows"], "cudnn", "dots")
        if found.get("examples_per_s", 0) > best["examples_per_s"]:
            attention, best = "cudnn", found
    rows = best["rows"]
    sweep.measure(f"{attention}_full_{2 * rows}", 2 * rows, attention, "full")
    if attention == "cudnn" and _fits(best, 2):
        sweep.measure(f"cudnn_dots_{2 * rows}", 2 * rows, attention, "dots")
    sweep.measure(f"{attention}_dots_{2 * rows}_in_2", 2 * rows, attention, "dots", accumulate=2)
    if not record.small:
        sweep.measure(f"{attention}_none_{rows}", rows, attention, "none")


def int8(record: Record, directory: str) -> None:
    """The same step with frozen weights in bf16 and in int8."""
    try:
        import qwix  # noqa: F401
    except ImportError:
        return record.skip("int8", "qwix is not installed")
    sweep = _Sweep(record, directory, "vit_l", "palm_1b")
    rows = 2 if record.small else 64
    plain = sweep.measure("bfloat16", rows, "xla", "dots")
    # All kernels in one program: to compile one for each takes longer than the rest of the stage.
    quantise = jax.jit(lambda tree: freezing.cast(tree, False, "int8"), out_shardings=model.one_device().replicated)
    sweep.steps.frozen = quantise(sweep.steps.frozen)
    counts = freezing.summarize(sweep.steps.trainable, sweep.steps.frozen, {})
    record.note(weights_gib_int8=gib(sum(x.weight_bytes for x in counts)))
    quantised = sweep.measure("int8", rows, "xla", "dots")
    if "median_ms" in plain and "median_ms" in quantised:
        record.note(int8_step_over_bfloat16=round(quantised["median_ms"] / plain["median_ms"], 3))
