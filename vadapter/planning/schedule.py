"""The cost of a compiled program on one device, its schedule played through and loops counted as often as they run.

The compiler estimates the cycles of most instructions, their memory traffic included (`estimated_cycles`). Where it
writes none:

- instructions take the longer of their FLOPs at the peak and their bytes at the bandwidth of HBM; kernels, which
  wait for vector units too, reach `KERNEL_SHARE` of the peak;
- collectives take what the model of `collectives` says;
- transfers that run beside computation (`-start` ... `-done`) begin when they are started and the link, or HBM, has
  finished those before. What is left of one at its `-done` is waited for, and only this waiting counts as time.

Operations that share HBM with a transfer are not slowed down by it, so the result is what a device can do at best.
"""

import dataclasses
import re

from vadapter.models.tpu_kernels import FUSED
from vadapter.planning import collectives, hlo
from vadapter.planning.calibration import FUSED_SHARES
from vadapter.planning.collectives import Exchange, Network
from vadapter.planning.costs import FREE, NAMING, Costs, hbm_bytes, kernel_flops, target

KERNEL_SHARE = 0.35
"""Of the peak, that a hand-written kernel is taken to reach: an assumption, as nothing is published for short rows.

Of fused attention more is known: `calibration.FUSED_SHARES`.
"""

SUMS = ("flops", "hbm_bytes", "matmul", "other", "kernels", "copies", "exposed")


@dataclasses.dataclass
class Cost:
    """Sums over a computation, run once.

    Attributes:
        flops: of matrix products, convolutions and kernels.
        hbm_bytes: read and written.
        matmul: cycles, as the following; see `programs.Cycles`.
        other: of other operations.
        kernels: of custom calls.
        copies: of copies, and waiting for them.
        exposed: waiting for collectives.
        exchanges: (collective, executions, cycles of waiting, whether it is in a loop).
        unknown_loops: whose length is not known; they count once.
        unknown_kernels: whose FLOPs are not known; their bytes alone count.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    matmul: float = 0.0
    other: float = 0.0
    kernels: float = 0.0
    copies: float = 0.0
    exposed: float = 0.0
    exchanges: list[tuple[Exchange, int, float, bool]] = dataclasses.field(default_factory=list)
    unknown_loops: int = 0
    unknown_kernels: int = 0

    @property
    def cycles(self) -> float:
        """All of them."""
        return self.matmul + self.other + self.kernels + self.copies + self.exposed

    def add(self, other: "Cost", times: int = 1, in_loop: bool = False) -> None:
        """Adds another computation, run so many times."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.unknown_loops += other.unknown_loops
        self.unknown_kernels += other.unknown_kernels
        self.exchanges += [(e, n * times, w * times, loop or in_loop) for e, n, w, loop in other.exchanges]


def cost(module: hlo.Module, network: Network) -> Cost:
    """Returns the cost of a program on one device of a network."""
    return _Play(Costs(module), network, module.entry).all()


@dataclasses.dataclass(frozen=True)
class _Transfer:
    """What a link, or HBM (`over`), does from one cycle to another; for a collective its number in the exchanges."""

    begin: float
    end: float
    over: str
    exchange: int | None


class _Play:
    """Plays the schedule of one computation through."""

    def __init__(self, costs: Costs, network: Network, computation: hlo.Computation):
        self.costs = costs
        self.module = costs.module
        self.network = network
        self.computation = computation
        kind = network.type
        self.clock = kind.clock_hz
        self.bytes_per_cycle = kind.hbm_bytes_per_s / kind.clock_hz
        self.flops_per_cycle = kind.peak_bf16_flops / kind.clock_hz
        self.cost = Cost()
        self.now = 0.0
        self.under_way: dict[str, _Transfer] = {}
        self.queues: dict[str, list[_Transfer]] = {"hbm": [], "links": [], "slices": []}  # in the order of their turns

    def all(self) -> Cost:
        """Returns the cost of the computation."""
        for instruction in self.computation.instructions:
            if instruction.opcode in FREE or (instruction.opcode == "async-start" and not instruction.operands):
                continue
            if not (self._runs_others(instruction) or self._communicates(instruction) or self._copies(instruction)):
                self._computes(instruction)
        return self.cost

    def _of(self, name: str) -> Cost:
        return _Play(self.costs, self.network, self.module.computations[name]).all()

    def _runs_others(self, instruction: hlo.Instruction) -> bool:
        """Loops, conditionals (the longest branch) and calls."""
        times, in_loop = 1, False
        if instruction.opcode == "while":
            known = self.module.trip_count(instruction, self.computation)
            self.cost.unknown_loops += known is None
            times, in_loop = 1 if known is None else known, True
            run = self._of(instruction.attribute("body") or "")
        elif instruction.opcode == "conditional":
            run = max((self._of(b) for b in instruction.branches), key=lambda b: b.cycles)
        elif instruction.opcode == "call":
            run = self._of(instruction.calls[0])
        else:
            return False
        self.cost.add(run, times, in_loop)
        self.now += times * run.cycles
        return True

    def _computes(self, instruction: hlo.Instruction) -> None:
        """Everything that keeps the core busy."""
        if target(instruction) in NAMING:
            return
        flops = self.costs.flops(self.computation, instruction)
        traffic = self.costs.traffic(self.computation, instruction)
        cycles = instruction.estimated_cycles
        if cycles is None:
            is_kernel = target(instruction) == "tpu_custom_call"
            self.cost.unknown_kernels += is_kernel and kernel_flops(self.computation, instruction) is None
            share = self._kernel_share(instruction) if instruction.opcode == "custom-call" else 1.0
            cycles = max(flops / self.flops_per_cycle / share, traffic / self.bytes_per_cycle)
        kinds = {"custom-call": "kernels", "copy": "copies"}
        kind = kinds.get(instruction.opcode, "matmul" if flops else "other")
        for name, value in (("flops", flops), ("hbm_bytes", traffic), (kind, cycles)):
            setattr(self.cost, name, getattr(self.cost, name) + value)
        self.now += cycles

    def _kernel_share(self, instruction: hlo.Instruction) -> float:
        known = FUSED_SHARES.get(self.network.type.name) if instruction.name.startswith(FUSED) else None
        return known or KERNEL_SHARE

    def _communicates(self, instruction: hlo.Instruction) -> bool:
        """Collectives: at once, or from a start to a done."""
        if instruction.opcode in ("send", "recv", "recv-done"):
            self._between_slices(instruction)
            return True
        start = self._start(instruction)
        inner = collectives.find(self.module, start) if start else None
        if start is None or inner is None:
            return False
        targets = {target(i) for _, i in self.module.inside(instruction)}
        channel = f"channel {inner.attribute('channel_id')}"
        if "AsyncCollectiveDone" in targets:
            self._wait(channel)
            return True
        started = "AsyncCollectiveStart" in targets
        if not started and "async_collective_fusion_config" in inner.attributes:
            return False  # a computation beside a collective, which it drives on
        self.cost.hbm_bytes += 2 * hbm_bytes(inner.arrays)  # what is sent is read, or what is received is read again
        key = channel if started else instruction.name
        self._exchange(key, collectives.exchange(self.module, start, inner, self.network), "links")
        if not started and not instruction.opcode.endswith(("-start", "-update")):
            self._wait(key)
        return True

    def _start(self, instruction: hlo.Instruction) -> hlo.Instruction | None:
        """The instruction that says what is begun here, itself but for `async-update`.

        Work of the sparse cores is made ready by an `async-start` without operands, and begun by an `async-update`
        that gives it some. None for an update that begins nothing.
        """
        if instruction.opcode != "async-update":
            return instruction
        start = self.computation.by_name.get(instruction.operands[0])
        return start if start and not start.operands and len(instruction.operands) > 1 else None

    def _between_slices(self, instruction: hlo.Instruction) -> None:
        """A send and the receive beside it are one collective; the done of the receive waits for it."""
        name = re.search(r'rendezvous="([^"]*)"', instruction.attributes)
        found = collectives.across_slices(instruction, self.network) if instruction.opcode == "send" else None
        if found:
            self._exchange(name.group(1) if name else instruction.name, found, "slices")
        elif instruction.opcode == "recv-done":
            received = self.computation.by_name.get(instruction.operands[0])
            name = re.search(r'rendezvous="([^"]*)"', received.attributes if received else "")
            self._wait(name.group(1) if name else "")

    def _copies(self, instruction: hlo.Instruction) -> bool:
        """Transfers between memories, and the dones of whatever was started in one instruction."""
        if instruction.opcode.endswith("-done"):
            key = next(iter(instruction.operands), "")
            before = self.computation.by_name.get(key)
            while before and key not in self.under_way and before.opcode == "async-update":
                key = before.operands[0]
                before = self.computation.by_name.get(key)
            self._wait(key)
            return True
        if not instruction.opcode.endswith(("-start", "-update")):
            return False
        if self._start(instruction) is None:
            return True
        whole = [a for a in instruction.arrays if a.dims][:2]  # source and destination, in either order
        moved = min((a.bytes for a in whole), default=0)
        self.cost.hbm_bytes += moved * sum(a.in_hbm for a in whole)
        self._begin(instruction.name, moved / self.bytes_per_cycle if hbm_bytes(whole) else 0.0, "hbm", None)
        return True

    def _exchange(self, key: str, found: Exchange, over: str) -> None:
        self.cost.exchanges.append((found, 1, 0.0, False))
        self._begin(key, found.seconds * self.clock, over, len(self.cost.exchanges) - 1)

    def _begin(self, key: str, cycles: float, over: str, exchange: int | None) -> None:
        queue = self.queues[over]
        begin = max(self.now, queue[-1].end) if queue else self.now
        self.under_way[key] = _Transfer(begin, begin + cycles, over, exchange)
        queue.append(self.under_way[key])

    def _wait(self, key: str) -> None:
        """Waits for a transfer, and so for those before it: the waiting counts for each while it has the link."""
        transfer = self.under_way.pop(key, None)
        if transfer is None or transfer.end <= self.now:
            return
        kind = "copies" if transfer.over == "hbm" else "exposed"
        setattr(self.cost, kind, getattr(self.cost, kind) + transfer.end - self.now)
        self.queues[transfer.over] = [t for t in self.queues[transfer.over] if t.end > self.now]
        for other in self.queues[transfer.over]:
            waited = min(other.end, transfer.end) - max(other.begin, self.now)
            if other.exchange is not None and waited > 0:
                found, times, before, in_loop = self.cost.exchanges[other.exchange]
                self.cost.exchanges[other.exchange] = (found, times, before + waited, in_loop)
        self.now = transfer.end
