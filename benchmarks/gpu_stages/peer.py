"""Stages `peer_*`: the training step of stage `step_*` in PyTorch and transformers."""

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import torch

from gpu_stages import model
from gpu_stages.peer_model import Peer
from gpu_stages.record import Record, gib, measured_ceiling, rates, repeats_for
from gpu_stages.training import rows_for_card
from vadapter.base import trees
from vadapter.base.batch import Batch
from vadapter.models import flops
from vadapter.models.vlm import VLMConfig
from vadapter.training.program import Program

# What the stages measure, in order, as (rows, compiled, checkpointed): first what no run has measured yet, repeats
# last, so that a cut costs repeats. Rows are for a card of 141 GB.
FIGURES = {
    ("vit_l", "palm_1b"): (
        (128, True, False),
        (64, True, False),
        (256, True, True),
        (256, False, True),
        (128, False, False),
        (64, False, False),
    ),
    ("vit_g", "palm_8b"): (
        (32, True, False),
        (64, True, False),
        (64, True, True),
        (64, False, True),
        (32, False, False),
        (16, False, False),
    ),
}
_SMALL = ((2, True, False), (4, True, True), (4, False, True), (2, False, False))
# Seconds that a figure needs; more if it compiles.
_NEEDED = {True: 25, False: 10}


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


def parity(config: VLMConfig, program: Program, peer: torch.nn.Module) -> dict[str, Any]:
    """Compares parameters and FLOPs of ours and the peer's; raises AssertionError if they differ by much.

    PyTorch's counter has no causal mask, so ours is counted without one here.
    """
    trained, frozen = (trees.flatten(x) for x in program.abstract_params)
    whole = dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, causal=False),
        adapter=dataclasses.replace(config.adapter, lm=dataclasses.replace(config.adapter.lm, causal=False)),
    )
    needed = model.flops_of(model.program(whole, boxed=program.boxed))(model.batch(config, 1))
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
    """torch.compile, gradient checkpointing and eager steps; whether both models agree, last."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not record.small:
        return record.skip("peer", "torch sees no GPU")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    torch.set_float32_matmul_precision("high")
    # At too many shapes torch.compile would go back to eager and say nothing.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    config = model.config(encoder, decoder, record.small)
    program = model.program(config)
    record.note(device=name, encoder=encoder, decoder=decoder, counted_on=jax.default_backend())
    start = time.monotonic()
    made = Peer(config, device)
    record.note(model_made_s=round(time.monotonic() - start, 1))
    _sweep(_Runs(record, directory, config, model.flops_of(program), made, device, name), encoder, decoder)
    with record.figure("parity") as entry:
        entry |= parity(config, program, made)


def _sweep(run: "_Runs", encoder: str, decoder: str) -> None:
    small = run.record.small
    memory = 0.0 if run.device == "cpu" else gib(torch.cuda.get_device_properties(0).total_memory)
    compiled_now = False
    for rows, compiled, checkpointed in _SMALL if small else FIGURES[encoder, decoder]:
        rows = rows if small else rows_for_card(rows, memory)
        if compiled != compiled_now:
            # A rehearsal traces the layers as the compiler would, and spares the compiler.
            run.made.compile_layers(compiled, "aot_eager" if small else "inductor")
            compiled_now = compiled
        kind = ("compiled" if compiled else "eager") + "_checkpointed" * checkpointed
        run.measure(f"{kind}_{rows}", rows, checkpointed, _NEEDED[compiled])


@dataclasses.dataclass
class _Runs:
    record: Record
    directory: str
    config: VLMConfig
    flops_of: Callable[[Batch], dict[str, float]]
    made: Peer
    device: str
    device_name: str

    def measure(self, name: str, rows: int, checkpointed: bool, seconds: float) -> dict[str, Any]:
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
        count = self.flops_of(model.batch(self.config, rows))
        rates(entry, rows, count, measured_ceiling(self.directory), flops.peak_flops(self.device_name))
        if cuda:
            entry["peak_gib_allocated"] = gib(torch.cuda.max_memory_allocated())
