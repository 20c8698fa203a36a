"""Settings of the data side. Light: imports neither TensorFlow nor seqio."""

import dataclasses
import hashlib
from collections.abc import Mapping

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """The `scenes` world. Each change of a field is another data set, kept in its own folder.

    Attributes:
        seed: everything drawn and written is a function of it.
        resolution: width and height of an image in pixels, at least 24.
        max_objects: a scene has 1..max_objects objects, at most 9.
        train, validation, test: number of images in each split.
        video_train, video_eval: number of clips in the train split, and in each of the two others.
        text_train, text_eval: number of text documents, likewise.
        num_frames: frames of a clip, at least 2.
        paraphrases: reference captions of a scene, 1..4; the first is always the canonical one.
        train_paraphrases: how many of them text documents and training targets choose from. Evaluation has all.
        questions: questions of a scene.
    """

    seed: int = 0
    resolution: int = 48
    max_objects: int = 2
    train: int = 8000
    validation: int = 512
    test: int = 512
    video_train: int = 3000
    video_eval: int = 256
    text_train: int = 24000
    text_eval: int = 512
    num_frames: int = 4
    paraphrases: int = 4
    train_paraphrases: int = 1
    questions: int = 4

    def num_examples(self, kind: str, split: str) -> int:
        """Returns how many records the split has; `kind` is images, videos or text."""
        if kind == "images":
            return {"train": self.train, "validation": self.validation, "test": self.test}[split]
        name = {"videos": "video", "text": "text"}[kind]
        return getattr(self, f"{name}_train" if split == "train" else f"{name}_eval")

    def fingerprint(self) -> str:
        """Returns 10 hex digits that name this configuration on disk."""
        fields = ",".join(f"{k}={v}" for k, v in sorted(dataclasses.asdict(self).items()))
        return hashlib.sha256(fields.encode()).hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What a `Loader` reads and the shape of the batches it makes.

    A row has `lengths["inputs"] + M * num_visual_tokens + lengths["targets"]` slots, M media a row.

    Attributes:
        mixture: name of a registered seqio task or mixture.
        split: split of it.
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
