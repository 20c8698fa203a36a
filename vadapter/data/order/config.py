"""Settings of a loader. Light: imports neither TensorFlow nor seqio."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a `Loader` reads and the shape of the batches it makes.

    A row has `lengths["inputs"] + M * num_visual_tokens + lengths["targets"]` slots, M media a row.

    Attributes:
        mixture: name of a registered seqio task or mixture.
        split: the split of that task or mixture.
        batch_size: rows of the global batch, over all hosts.
        lengths: `inputs`, slots of the prompt's text with the bos slot that begins every row (so at least 1; the
            visual tokens come on top), and `targets`, slots of the text to predict with its eos.
        num_visual_tokens: visual tokens a medium, R: what the model's adapter emits; `{frames: R}` where that depends
            on the number of frames (1 for a still image).
        image_size: width and height of the encoder's input in pixels.
        num_frames: frames sampled from a video. A still image has 1.
        seed: seed of the order of the data and of the choice of references.
        long_text: `truncate` cuts text that does not fit and counts it; `error` stops the run. Visual tokens are
            never cut.
        max_bad_share: share of the records that may be unreadable (they become rows of weight 0) before the run stops.
        eval_limit: most examples of a task in a pass over the split (`eval_batches`); 0 is all.
        prefetch: batches made ahead of their use.
    """

    mixture: str = "scenes_images"
    split: str = "train"
    batch_size: int = 32
    lengths: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"inputs": 32, "targets": 32})
    num_visual_tokens: int | Mapping[int, int] = 16
    image_size: int = 48
    num_frames: int = 4
    seed: int = 0
    long_text: str = "truncate"
    max_bad_share: float = 0.01
    eval_limit: int = 0
    prefetch: int = 2
