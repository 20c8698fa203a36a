"""GPUs that a run can be planned for, and what a step takes of one, by estimate.

No GPU compiler runs here. Memory is what the CPU compiler reserves for the very step, with its temporaries corrected;
time is a roofline. Both corrections are from four steps that one H200 ran (benchmarks/results/h200).
"""

import dataclasses
import re
from collections.abc import Callable

from vadapter.base.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: for people.
        memory_bytes: of it, as the driver reports.
        bf16_flops: a second, dense, sums in float32; 0 if not known.
        bytes_per_s: of its memory; 0 if not known.
    """

    name: str
    memory_bytes: int
    bf16_flops: float = 0.0
    bytes_per_s: float = 0.0

    @property
    def usable_bytes(self) -> int:
        """What a program may take: the rest is the driver's and the CUDA context's."""
        return int(USABLE * self.memory_bytes)


USABLE = 0.92
"""Share of the memory that jax got on the H200, 130.0 of 140.4 GiB, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.93."""

TEMPORARIES = 0.44
"""Temporaries of a bf16 step on the H200 over those that the CPU compiler reserves, which computes bf16 in float32.

The three steps measured gave 0.34, 0.38 and 0.44; the largest is taken. It is of what is not kept in bf16 by the CPU
compiler too: see `temporaries`. So memory was told 2 to 22% too high.
"""

MOST = 4096
"""Rows of a micro-batch beyond which no larger batch is looked for."""

SPEED = 0.50
"""Share of the roofline that a step reached: 0.43 (ViT-L and 1B), 0.51, 0.53 and 0.54 (ViT-g and 8B)."""

BASIS = (
    "An estimate. Weights, optimizer and batch are exact. Of temporaries, what the decoder's layers "
    "hand on counts whole and the rest 0.44 of what the CPU compiler reserves, which made the memory of three bf16 "
    "steps 2 to 22% higher than one H200 needed; all counts whole where a part computes "
    "in float32, which has no time here. A step's time is the useful FLOPs, or reading the weights twice, at half "
    "of the published speed: 15% too short to 7% too long for the steps that the H200 ran. Other cards were not "
    "measured. jax takes 75% of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION=0.93 is set; the plan counts "
    "on that."
)

# Dense bf16 with sums in float32, and bandwidth, as published; half of what is given with sparsity. The figures were
# not compared with NVIDIA's own sheets one by one. Memory: what the driver reports
# (nvidia-smi), which differs from the GB in the name both ways; cards with ECC on GDDR6 lose a sixteenth to it.
# Name, GB in the name, MiB of the driver, TFLOP/s, GB/s.
_TABLE = (
    ("RTX 3090", 24, 24_576, 71, 936),
    ("RTX 4080", 16, 16_376, 97.5, 717),
    ("RTX 4090", 24, 24_564, 165.2, 1_008),
    ("RTX 5090", 32, 32_607, 209.5, 1_792),
    ("RTX A6000", 48, 49_140, 154.8, 768),
    ("A10", 24, 23_028, 125, 600),
    ("L4", 24, 23_034, 121, 300),
    ("L40S", 48, 46_068, 362, 864),
    ("A100 40G", 40, 40_960, 312, 1_555),
    ("A100 80G", 80, 81_920, 312, 2_039),
    ("H100 PCIe", 80, 81_559, 756, 2_000),
    ("H100", 80, 81_559, 989, 3_350),
    ("H200", 141, 143_771, 989, 4_800),
)
CARDS = {name: Card(name, mib * 2**20, tflops * 1e12, gb * 1e9) for name, _, mib, tflops, gb in _TABLE}
"""Cards by name. H100 and H200 are the SXM ones; the A100's bandwidth is the SXM one too."""


def _plain(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    plain = re.sub(r"nvidia|geforce|tesla|sxm\d?|hbm\d?e?", "", plain)
    return re.sub(r"(\d)gb$", r"\1g", plain)


def card(name: str) -> Card:
    """Returns a card by its name; case, spaces, dashes and the maker's name do not matter.

    Raises:
        UserError: the name is not known, or it is that of several cards.
    """
    wanted = _plain(name)
    known = {_plain(key): key for key in CARDS} | {_plain(f"{key} {gb}GB"): key for key, gb, *_ in _TABLE}
    if found := known.get(wanted) or known.get(f"rtx{wanted}"):
        return CARDS[found]
    raise UserError(
        f"Expected a GPU of this list, found {name!r}: {', '.join(CARDS)}. For another, give its memory in its place, "
        "such as --memory=24GB."
    )


def memory(text: str) -> Card:
    """Returns a card of which only the memory is known.

    Args:
        text: such as `24GB` (10^9 bytes each, the careful reading: drivers report up to 7% more) or `24GiB`
            (2^30 bytes each).

    Raises:
        UserError: it is no such amount, or nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gb|g|gib)\s*", text.lower())
    size = float(found.group(1)) * (GIB if found.group(2) == "gib" else 1e9) if found else 0.0
    if not 1e6 <= size < 1e15:
        raise UserError(f"Expected the memory of a GPU, such as 24GB or 24GiB, found {text!r}.")
    return Card(f"a GPU of {text.strip()}", int(size))


def step_seconds(card: Card, useful_flops: float, argument_bytes: int) -> float | None:
    """Returns what a bf16 step is expected to take, None if the card's speed is not known.

    Args:
        card: that runs it.
        useful_flops: of the step.
        argument_bytes: weights, optimizer and batch: read for the forward and for the backward pass.
    """
    if not card.bf16_flops or not card.bytes_per_s:
        return None
    return max(useful_flops / card.bf16_flops, 2 * argument_bytes / card.bytes_per_s) / SPEED


def temporaries(compiled: int, kept: int) -> int:
    """Returns the bytes of temporaries that a bf16 step is expected to need.

    Args:
        compiled: bytes that the CPU compiler reserves.
        kept: of these, what it keeps in bf16 for the backward pass as a GPU does, and so needs there as well.
    """
    kept = min(kept, compiled)
    return kept + int(TEMPORARIES * (compiled - kept))


def largest(fits: Callable[[int], bool], start: int, most: int = MOST) -> int:
    """Returns the largest number that fits, to within an eighth, where all less than one that fits do; 0 if none does.

    Args:
        fits: whether a number does; slow, so it is asked seldom.
        start: where to begin, 1 or more.
        most: not more than this is tried.
    """
    good, bad = 0, most + 1
    n = min(start, most)
    while good + max(1, good // 8) < bad:
        if fits(n):
            good = n
        else:
            bad = n
        n = min(2 * good, most) if bad > most else (good + bad) // 2
        if n == good:
            break
    return good
