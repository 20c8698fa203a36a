"""Settings of the `scenes` world."""

import dataclasses
import hashlib

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
