"""Stages `peer_*`: the training step of stage `step_*` in PyTorch and transformers."""

import dataclasses
import gc
import time
from typing import Any

import jax
import torch
from flax import linen as nn

from gpu_stages import model
from gpu_stages.peer_model import Peer
from gpu_stages.record import Record, gib, measured_ceiling, rates, repeats_for
from vadapter.base import trees
from vadapter.models import flops
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import abstract_params
from vadapter.training import freezing

SIZES = {("vit_g", "palm_8b"): (16, 32, 64), ("vit_l", "palm_1b"): (32, 64, 128)}


def inputs(config: VLMConfig, rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Makes the images, the texts and their targets."""
    size = config.encoder.image_size
    with torch.device(device):
        pixels = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)
        text = torch.randint(1, config.decoder.vocab_size, (rows, model.PROMPT + model.TARGETS))
    return pixels, text, text[:, model.PROMPT :]


def counted_flops(config: VLMConfig) -> float:
    """Counts the peer's FLOPs of one row, forwards and backwards, on tensors without storage."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows the products that plain attention is made of, on every device.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        peer = Peer(config, "cpu")
        with FlopCounterMode(display=False) as counter:
            peer(*inputs(config, 1, "cpu")).backward()
    return float(counter.get_total_flops())


def parity(config: VLMConfig, abstract: dict[str, Any], peer: torch.nn.Module) -> dict[str, Any]:
    """Compares parameters and FLOPs of ours and the peer's; raises AssertionError if they differ by much.

    PyTorch's counter has no causal mask, so ours is counted without one here.
    """
    trained, frozen = (trees.flatten(x) for x in freezing.partition(abstract, model.TRAINABLE))
    whole = dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, causal=False),
        adapter=dataclasses.replace(config.adapter, lm=dataclasses.replace(config.adapter.lm, causal=False)),
    )
    needed = model.flops_of(whole, abstract)(model.batch(config, 1))
    pairs = {
        "trained_parameters": (_count(trained), sum(p.numel() for p in peer.parameters() if p.requires_grad)),
        "frozen_parameters": (_count(frozen), sum(p.numel() for p in peer.parameters() if not p.requires_grad)),
        "flops_of_a_row": (sum(needed.values()), counted_flops(config)),
    }
    found: dict[str, Any] = {}
    for name, (a, b) in pairs.items():
        found[name] = {"vadapter": a, "peer": b, "ratio": round(b / a, 4)}
    for name, limit in (("trained_parameters", 0.02), ("frozen_parameters", 0.02), ("flops_of_a_row", 0.05)):
        assert abs(found[name]["ratio"] - 1) < limit, f"{name} of the peer differ: {found[name]}"
    return found


def _count(flat: dict[str, Any]) -> int:
    return sum(int(x.size) for x in flat.values())


def peer(record: Record, directory: str, encoder: str, decoder: str) -> None:
    """Eager batch sizes, torch.compile at the best, gradient checkpointing; whether both models agree, last."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not record.small:
        return record.skip("peer", "torch sees no GPU")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    torch.set_float32_matmul_precision("high")
    config = model.config(encoder, decoder, record.small)
    abstract = nn.unbox(abstract_params(VLM(config), model.batch(config, 1)))
    record.note(device=name, encoder=encoder, decoder=decoder, counted_on=jax.default_backend())
    start = time.monotonic()
    made = Peer(config, device)
    record.note(model_made_s=round(time.monotonic() - start, 1))
    _sweep(_Runs(record, directory, config, abstract, made, device, name), encoder, decoder)
    with record.figure("parity") as entry:
        entry |= parity(config, abstract, made)


def _sweep(run: "_Runs", encoder: str, decoder: str) -> None:
    record = run.record
    sizes = (2,) if record.small else SIZES[encoder, decoder]
    best: dict[str, Any] = {}
    for rows in sizes:
        found = run.measure(f"eager_{rows}", rows, False)
        if "examples_per_s" not in found:
            break
        best = max(best or found, found, key=lambda entry: entry["examples_per_s"])
    rows = best["rows"] if best else sizes[0] // 2
    larger = 2 * rows
    if not record.small:  # a rehearsal need not wait for the compiler
        run.made.compile_layers(True)
        if "examples_per_s" in run.measure(f"compiled_{rows}", rows, False, seconds=20):
            run.measure(f"compiled_{larger}", larger, False, seconds=20)
        run.measure(f"compiled_checkpointed_{larger}", larger, True, seconds=15)
        run.made.compile_layers(False)
    run.measure(f"eager_checkpointed_{larger}", larger, True)


@dataclasses.dataclass
class _Runs:
    record: Record
    directory: str
    config: VLMConfig
    abstract: dict[str, Any]
    made: Peer
    device: str
    device_name: str

    def measure(self, name: str, rows: int, checkpointed: bool, seconds: float = 8) -> dict[str, Any]:
        """Measures one figure if there are that many seconds for it."""
        if self.record.left < seconds and not self.record.small:
            self.record.skip(name, "no time left")
            return {}
        with self.record.figure(name, rows=rows, checkpointed=checkpointed) as entry:
            self._measure(rows, checkpointed, entry)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return entry

    def _measure(self, rows: int, checkpointed: bool, entry: dict[str, Any]) -> None:
        lm, cuda = self.made.decoder, self.device == "cuda"
        if checkpointed:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            lm.gradient_checkpointing_disable()
        trained = [p for p in self.made.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-7, weight_decay=1e-4, fused=cuda)
        given = inputs(self.config, rows, self.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        loss = torch.zeros(())

        def update() -> None:
            nonlocal loss
            optimizer.zero_grad(set_to_none=True)
            loss = self.made(*given)
            loss.backward()
            optimizer.step()
            if cuda:
                torch.cuda.synchronize()

        start = time.perf_counter()
        update()
        entry["first_step_s"] = round(time.perf_counter() - start, 2)
        entry |= repeats_for(update, 0.1 if self.record.small else 3.0)
        entry["loss"] = round(float(loss.detach()), 4)
        count = model.flops_of(self.config, self.abstract)(model.batch(self.config, rows))
        rates(entry, rows, count, measured_ceiling(self.directory), flops.peak_flops(self.device_name))
        if cuda:
            entry["peak_gib_allocated"] = gib(torch.cuda.max_memory_allocated())
