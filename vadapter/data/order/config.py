"""Settings of a loader. Light: imports neither TensorFlow nor seqio."""

import dataclasses
from collections.abc import Mapping

from vadapter.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """Several samples a row, for training; see `vadapter.data.order.packing`.

    Each sample is laid out as without packing and attends within its own segment only. One that fits in no row of its
    window is left out of this epoch and counted (`data/unpacked_share`); more room (`tokens`) makes that rare.

    Attributes:
        samples: samples a row, on average: a batch draws `batch_size * samples`.
        tokens: slots of a row, visual tokens included; at least those of the longest sample that `lengths` allow. None
            is all visual tokens of `samples` samples and half of their slots for text.
        targets: slots of a row for targets; None is `samples` times `lengths["targets"]`.
        media: media of a row; None is those of `samples` samples.
        window: rows that share their samples; it divides the rows of a host. Larger windows leave out fewer samples,
            and a change of it changes the rows. None is the greatest common divisor of 4 and the batch size.
    """

    samples: int = 4
    tokens: int | None = None
    targets: int | None = None
    media: int | None = None
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a `Loader` reads, and how much text a row holds. The sizes of media are the model's: see `Sizes`.

    A row has `lengths["inputs"] + M * R + lengths["targets"]` slots, for M media a row of R visual tokens.

    Attributes:
        mixture: name of a registered seqio task or mixture.
        split: the split of that task or mixture.
        batch_size: rows of the global batch, over all hosts.
        lengths: `inputs`, slots of the prompt's text with the bos slot that begins every row (so at least 1; the
            visual tokens come on top), and `targets`, slots of the text to predict with its eos.
        seed: seed of the order of the data and of the choice of references.
        long_text: `truncate` cuts text that does not fit, counts it, and warns where the model would learn not to
            stop; `drop` gives such rows no weight, in training and in losses; `error` stops the run. Visual tokens
            are never cut.
        max_bad_share: share of the records that may be unreadable (they become rows of weight 0) before the run stops.
        eval_limit: most examples of a task in a pass over the split (`eval_batches`); 0 is all.
        prefetch: batches made ahead of their use.
        packing: how several samples share a row, in training only; None gives each a row of its own.

    Raises:
        UserError: `packing` is no `PackingConfig`.
    """

    mixture: str
    split: str = "train"
    batch_size: int = 32
    lengths: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"inputs": 32, "targets": 32})
    seed: int = 0
    long_text: str = "truncate"
    max_bad_share: float = 0.01
    eval_limit: int = 0
    prefetch: int = 2
    packing: PackingConfig | None = None

    def __post_init__(self) -> None:
        if self.packing is not None and not isinstance(self.packing, PackingConfig):
            raise UserError(
                f"Expected LoaderConfig.packing to be a PackingConfig or None; found {self.packing!r}. In gin, write "
                "train/LoaderConfig.packing = @PackingConfig()."
            )
