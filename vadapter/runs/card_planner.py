"""Plans a recipe on one GPU: the CPU compiler's buffers of the training step, corrected, and a roofline of the card."""

import dataclasses
import gc
from typing import Any

import jax

from vadapter.models.stacks import layer_stacks
from vadapter.planning import cards
from vadapter.planning.cards import Card
from vadapter.planning.plans import gib
from vadapter.runs.experiment import Experiment
from vadapter.runs.plan_parts import PlannedParts


@dataclasses.dataclass(frozen=True)
class CardPlan:
    """A recipe on one GPU.

    Attributes:
        recipe: its name.
        card: its name.
        rows: of a batch.
        accumulate: micro-batches that the rows are split into.
        argument_bytes: weights, optimizer and batch: exact.
        temporary_bytes: an estimate, see `cards.temporaries`.
        usable_bytes: of the card.
        useful_flops: of a step.
        step_seconds: an estimate, see `cards.step_seconds`; None if the card's speed is not known
            or a part computes in float32.
    """

    recipe: str
    card: str
    rows: int
    accumulate: int
    argument_bytes: int
    temporary_bytes: int
    usable_bytes: int
    useful_flops: float
    step_seconds: float | None

    @property
    def peak_bytes(self) -> int:
        """Needed, all in all."""
        return self.argument_bytes + self.temporary_bytes

    @property
    def fits(self) -> bool:
        """Whether the card holds the step, by the estimate."""
        return self.peak_bytes <= self.usable_bytes

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain data for `json.dumps`."""
        return dataclasses.asdict(self) | {"peak_bytes": self.peak_bytes, "fits": self.fits}

    def text(self) -> str:
        """Returns what matters most, as one paragraph."""
        verdict = "fits" if self.fits else "does not fit"
        head = (
            f"{self.recipe} on {self.card}, batches of {self.rows:,}: {verdict}. A step needs about "
            f"{gib(self.peak_bytes)} of {gib(self.usable_bytes)} that a program may take: {gib(self.argument_bytes)} "
            f"of weights, optimizer and batch, and about {gib(self.temporary_bytes)} of temporaries."
        )
        if not self.fits:
            weights = self.argument_bytes > self.usable_bytes
            less = "frozen weights in int8 (TrainConfig.frozen_dtype), a smaller model, or a larger card"
            more = (
                "a smaller BATCH_SIZE, more micro-batches (OptimizerConfig.accumulate), remat = 'full', fewer queries"
            )
            return f"{head} What would help: {less if weights else f'{more}, {less}'}."
        if self.step_seconds is None:
            return head
        return (
            f"{head} It takes about {self.step_seconds:.3g} s, {self.rows / self.step_seconds:,.3g} examples a second."
        )


def plan(recipe: str, experiment: Experiment, card: Card, rows: int | None = None, video: bool = False) -> CardPlan:
    """Compiles the training step on this machine's CPU and says what it means for a GPU.

    Args:
        recipe: its name, for people.
        experiment: what it says.
        card: to plan for.
        rows: of a batch; default the recipe's.
        video: whether batches hold videos in place of still images.

    Raises:
        UserError: the recipe's mesh is of more than one device, or sizes do not fit one another.
    """
    if rows is not None:
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=rows))
    parts = PlannedParts(experiment, jax.devices("cpu")[:1], video)
    found: Any = parts.program.lower().compile().memory_analysis()
    useful, accumulate = sum(parts.useful_flops().values()), experiment.train.optimizer.accumulate
    # What computes in float32 is not made larger by the CPU compiler, and the card's published speed is not its.
    bf16 = all(getattr(c, "dtype", "") == "bfloat16" for c in layer_stacks(experiment.model).values())
    return CardPlan(
        recipe=recipe,
        card=card.name,
        rows=experiment.data.batch_size,
        accumulate=accumulate,
        argument_bytes=found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes,
        temporary_bytes=cards.temporaries(found.temp_size_in_bytes, _handed_on(parts, accumulate))
        if bf16
        else found.temp_size_in_bytes,
        usable_bytes=card.usable_bytes,
        useful_flops=useful,
        step_seconds=cards.step_seconds(card, useful, found.argument_size_in_bytes) if bf16 else None,
    )


def _handed_on(parts: PlannedParts, accumulate: int) -> int:
    """Bytes of the hidden states that each layer of the decoder hands on, which any `remat` keeps, in bf16."""
    decoder: Any = getattr(parts.experiment.model, "decoder", None)
    tokens = getattr(parts.example, "tokens", None)
    if tokens is None or not hasattr(decoder, "depth"):
        return 0
    return 2 * tokens.size // accumulate * decoder.width * decoder.depth


def largest(recipe: str, experiment: Experiment, card: Card, video: bool = False) -> CardPlan | None:
    """Returns the plan of the largest batch that fits, to within an eighth; None if not even the smallest does.

    The arguments are those of `plan`; the search starts at the recipe's batch.
    """
    accumulate, found = experiment.train.optimizer.accumulate, {}

    def fits(n: int) -> bool:
        found[n] = plan(recipe, experiment, card, n * accumulate, video)
        gc.collect()  # the program just compiled
        return found[n].fits

    best = cards.largest(fits, max(1, experiment.data.batch_size // accumulate))
    return found.get(best)
