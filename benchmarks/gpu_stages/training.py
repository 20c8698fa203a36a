"""Stages on the training step: what the card can do, what a step of ours takes of it, and what int8 saves."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gpu_stages import model
from gpu_stages.record import Record, gib, measured_ceiling, rates, repeats_for, times
from vadapter.models import flops
from vadapter.training import freezing

# What stages `step_*` measure, in order, as (rows, attention, recomputation, micro-batches): first what no run has
# measured yet, repeats last, so that a cut costs repeats. Rows are for a card of 141 GB.
FIGURES = {
    ("vit_l", "palm_1b"): (
        (64, "cudnn", "dots", 1),
        (64, "cudnn", "none", 1),
        (64, "cudnn", "full", 1),
        (128, "cudnn", "dots", 1),
        (128, "cudnn", "dots", 2),
        (64, "xla", "dots", 1),
    ),
    ("vit_g", "palm_8b"): (
        (128, "cudnn", "full", 1),
        (128, "cudnn", "dots", 2),
        (32, "cudnn", "none", 1),
        (64, "cudnn", "dots", 1),
        (32, "xla", "dots", 1),
    ),
}
_SMALL = ((2, "xla", "dots", 1), (4, "xla", "dots", 2))


def describe_device(record: Record) -> None:
    """Notes the device."""
    device = jax.devices()[0]
    record.note(device=device.device_kind, platform=device.platform, memory_gib=memory_gib())


def memory_gib() -> float:
    """Returns what jax may use of the device's memory; 0 if it does not say."""
    return gib((jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def rows_for_card(rows: int, gigabytes: float) -> int:
    """Returns the rows for a card: batch sizes are for 141 GB, and a card with much less gets half of them."""
    return rows if gigabytes > 110 else rows // 2


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
    def __init__(self, record: Record, directory: str, encoder: str, decoder: str, frozen_dtype: str = "bfloat16"):
        describe_device(record)
        self.record, self.names = record, (encoder, decoder)
        self.peak = flops.peak_flops(jax.devices()[0].device_kind)
        self.ceiling = measured_ceiling(directory)
        start = time.monotonic()
        self.steps = model.Steps(model.config(encoder, decoder, record.small), frozen_dtype)
        jax.block_until_ready((self.steps.trainable, self.steps.frozen))
        counts = freezing.summarize(self.steps.trainable, self.steps.frozen, {})
        record.note(
            encoder=encoder,
            decoder=decoder,
            text_tokens=model.PROMPT + model.TARGETS,
            soft_tokens=self.steps.config.num_visual_tokens(1),
            parameters={f"{x.part}{' (trained)' * x.trainable}": x.parameters for x in counts},
            parameters_made_s=round(time.monotonic() - start, 1),
            ceiling_tflops=self.ceiling and self.ceiling / 1e12,
            published_tflops=self.peak and self.peak / 1e12,
        )
        record.note(**{f"weights_gib_{frozen_dtype}": gib(sum(x.weight_bytes for x in counts))})
        self.longest = 0.0

    def measure(self, name: str, rows: int, attention: str, remat: str, accumulate: int = 1) -> dict[str, Any]:
        """Measures one figure unless time is short."""
        if self.record.left < 1.15 * self.longest:
            self.record.skip(name, "no time left")
            return {}
        start = time.monotonic()
        config = model.config(*self.names, self.record.small, attention, remat)
        settings = {"rows": rows, "attention": attention, "remat": remat, "accumulate": accumulate}
        with self.record.figure(name, **settings) as entry:
            self.steps.measure(config, rows, repeats_for, entry, accumulate)
            count = self.steps.flops_of(model.batch(config, rows))
            rates(entry, rows, count, self.ceiling, self.peak)
        self.longest = max(self.longest, time.monotonic() - start)
        return entry


def step(record: Record, directory: str, encoder: str, decoder: str) -> None:
    """A stage-2 step: attention, recomputation, batch sizes and micro-batches."""
    sweep = _Sweep(record, directory, encoder, decoder)
    figures = _SMALL if record.small else FIGURES[encoder, decoder]
    for rows, attention, remat, accumulate in figures:
        rows = rows if record.small else rows_for_card(rows, memory_gib())
        name = f"{attention}_{remat}_{rows}" + (f"_in_{accumulate}" if accumulate > 1 else "")
        sweep.measure(name, rows, attention, remat, accumulate)


def int8(record: Record, directory: str) -> None:
    """The same step with frozen weights in int8 and in bf16."""
    try:
        import qwix  # noqa: F401
    except ImportError:
        return record.skip("int8", "qwix is not installed")
    found: dict[str, dict[str, Any]] = {}
    for frozen_dtype in ("int8", "bfloat16"):
        sweep = _Sweep(record, directory, "vit_l", "palm_1b", frozen_dtype)
        rows = 2 if record.small else rows_for_card(64, memory_gib())
        found[frozen_dtype] = sweep.measure(frozen_dtype, rows, "xla", "dots")
        del sweep  # its weights
    if all("median_ms" in entry for entry in found.values()):
        ratio = found["int8"]["median_ms"] / found["bfloat16"]["median_ms"]
        record.note(int8_step_over_bfloat16=round(ratio, 3))
