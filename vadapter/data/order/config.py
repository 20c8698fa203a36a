"""Settings of a loader. Light: imports neither TensorFlow nor seqio."""

import dataclasses
from collections.abc import Mapping


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
