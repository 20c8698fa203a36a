"""The TFDS builder `scenes` and `prepare`, which builds it where it is absent. Needs no network."""

import io
import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vadapter.base.errors import UserError
from vadapter.base.quiet import quiet
from vadapter.data.scenes import drawing, text, world
from vadapter.data.scenes.config import SPLITS, ScenesConfig
from vadapter.data.scenes.questions import Balancer

KINDS = ("images", "videos", "text")


class ScenesBuilderConfig(tfds.core.BuilderConfig):
    """One of the kinds (images, videos, text) of a `ScenesConfig`. Its name on disk is the kind and a fingerprint."""

    def __init__(self, kind: str, scenes: ScenesConfig | None = None, name: str | None = None):
        self.kind = kind
        self.scenes = scenes or ScenesConfig()
        super().__init__(name=name or f"{kind}_{self.scenes.fingerprint()}", description=f"{kind}: {self.scenes}")


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Shapes and handwritten digits on a 3x3 grid: pictures, clips and texts about them."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing to look up beside the code: no downloads, so no checksums
    BUILDER_CONFIGS = [ScenesBuilderConfig(kind, name=kind) for kind in KINDS]

    @property
    def _config(self) -> ScenesBuilderConfig:
        assert isinstance(self.builder_config, ScenesBuilderConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        texts = tfds.features.Sequence(tfds.features.Text())
        n = self._config.scenes.resolution
        image = tfds.features.Image(shape=(n, n, 3), encoding_format="png")
        scene = {
            "scene": tfds.features.Text(),
            "captions": texts,
            "facts": tfds.features.Text(),
            "questions": texts,
            "answers": texts,
            "question_types": texts,
        }
        features: dict[str, Any] = {
            "images": {
                "image": image,
                "labels": tfds.features.Tensor(shape=(len(world.NUM_CLASSES),), dtype=np.int32),
                **scene,
            },
            "videos": {"frames": tfds.features.Sequence(image), **scene},
            "text": {"scene": tfds.features.Text(), "text": tfds.features.Text()},
        }[self._config.kind]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            homepage="https://arxiv.org/abs/2402.10896",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        config, kind = self._config.scenes, self._config.kind
        rng = random.Random(f"scenes {config.seed} {kind} {split}")
        count = config.num_examples(kind, split)
        if kind == "text":
            for i, doc in enumerate(text.documents(rng, count, config.max_objects, config.train_paraphrases)):
                yield i, {"scene": f"text/{split}/{i}", "text": doc}
            return
        balancer = Balancer(config.max_objects, config.questions)
        for i in range(count):
            yield i, _record(f"{kind}/{split}/{i}", rng, split, config, kind, balancer)


def _record(name: str, rng: random.Random, split: str, config: ScenesConfig, kind: str, balancer: Balancer) -> dict:
    clip = kind == "videos"
    scene = (world.sample_clip if clip else world.sample_image)(rng, config.max_objects)
    questions = balancer.choose(rng, scene)
    pixels = drawing.draw(scene, split, rng, config.resolution, config.num_frames)
    pictures = [io.BytesIO(drawing.png(p)) for p in pixels]
    record: dict[str, Any] = {
        "scene": name,
        "captions": world.captions(scene, config.paraphrases),
        "facts": world.facts(scene),
        "questions": [q.text for q in questions],
        "answers": [q.answer for q in questions],
        "question_types": [q.type for q in questions],
    }
    if clip:
        return record | {"frames": pictures}
    return record | {"image": pictures[0], "labels": np.asarray(world.labels(scene), np.int32)}


def _check(config: ScenesConfig) -> None:
    limits = {
        "resolution": (24, 4096),
        "max_objects": (1, 9),
        "paraphrases": (1, 4),
        "train_paraphrases": (1, 4),
        "num_frames": (2, 1024),
    }
    limits |= {"questions": (1, 8)}
    limits |= dict.fromkeys(
        ("train", "validation", "test", "video_train", "video_eval", "text_train", "text_eval"), (1, 10**9)
    )
    for field, (least, most) in limits.items():
        if not least <= getattr(config, field) <= most:
            raise UserError(
                f"Expected ScenesConfig.{field} from {least} to {most}; found {getattr(config, field)}. Change it."
            )


def builder(data_dir: str, kind: str, config: ScenesConfig | None = None) -> Scenes:
    """Returns the TFDS builder of a kind (images, videos or text) under `data_dir`, built or not."""
    with quiet():
        return Scenes(data_dir=data_dir, config=ScenesBuilderConfig(kind, config), file_format="array_record")


def prepare(data_dir: str, config: ScenesConfig | None = None, kinds: tuple[str, ...] = KINDS) -> None:
    """Writes the data set as ArrayRecord files under `data_dir`, unless it is there already.

    Each kind appears at once when it is complete: an interrupted run leaves nothing that looks finished.

    Raises:
        UserError: a field of the configuration is out of its range.
    """
    config = config or ScenesConfig()
    _check(config)
    tfds.disable_progress_bar()
    for kind in kinds:
        made = builder(data_dir, kind, config)
        if made.data_path.exists():
            continue
        logging.info("writing scenes (%s) to %s", kind, made.data_path)
        try:
            made.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except OSError:
            if not made.data_path.exists():  # else another process was faster
                raise
