"""A user's own JSONL files of images and videos with captions or questions."""

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote, resolve
from vadapter.data.reading import images, shards, video
from vadapter.data.reading.sources import RandomAccessSource, Shape

MEDIA_KEYS = ("image", "video")
_KNOWN = {*MEDIA_KEYS, "caption", "question", "answers", "id"}


class JsonlSource(RandomAccessSource):
    """Records of one kind in a user's JSONL files: (image or video) x (caption or question).

    A line is `{"image" or "video": path relative to the file, "caption": text or list of texts}` or
    `{"image" or "video": path, "question": text, "answers": list of texts}`, with an optional `"id"`. Files and media
    may lie at an address such as gs://bucket/photos. Lines of another form are left out, named in the log, and stop the
    run if they are more than `max_bad_share` of a file.

    Without a validation file, the share `holdout` of the media, chosen by a hash of the file's name, is held out of the
    training file, so that no image is in both splits.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        *,
        media: str,
        question: bool,
        holdout: float = 0.05,
        max_bad_share: float = 0.01,
        resize: str = "stretch",
        frame_sampling: str = "uniform",
    ):
        self.media, self.threads = media, shards.default_threads(train)
        self.resize, self.frame_sampling = resize, frame_sampling
        self._files = {"train": train} | ({"validation": validation} if validation else {})
        lines = {split: read_jsonl(path, max_bad_share) for split, path in self._files.items()}
        if not validation:
            lines["train"], lines["validation"] = _hold_out(lines["train"], holdout)
        wanted = [k for k in (media, "question" if question else "caption")]
        self._lines = {s: [line for line in found if all(k in line for k in wanted)] for s, found in lines.items()}
        self._kind = " ".join(wanted)
        super().__init__(splits=tuple(s for s, found in self._lines.items() if found), caching_permitted=False)

    def __str__(self) -> str:
        return f"JsonlSource({self._files['train']}, {self._kind})"

    def num_examples(self, split: str) -> int:
        return len(self._lines[split])

    def read(self, split: str, indices: np.ndarray) -> list[bytes]:
        return [_serialise(self._lines[split][int(i)]) for i in indices]

    def read_media(self, record: bytes, shape: Shape, choice: int = 0) -> np.ndarray:
        path = tf.train.Example.FromString(record).features.feature["path"].bytes_list.value[0].decode()
        if self.media == "image":
            return images.decode(shards.read_file(path), shape[2], self.resize)[None, None]
        source = shards.read_file(path) if is_remote(path) else path
        return video.decode(source, shape[1], shape[2], self.resize, self.frame_sampling, choice)[None]

    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        text = tf.io.FixedLenFeature([], tf.string)
        texts = tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)
        return tf.io.parse_single_example(
            record, {"id": text, "path": text, "question": text, "captions": texts, "answers": texts}
        )


def _serialise(line: dict) -> bytes:
    """A line as a serialised tf.train.Example."""
    path = next(line[k] for k in MEDIA_KEYS if k in line)
    values = {"id": [line["id"]], "path": [path], "question": [line.get("question", "")]}
    values |= {"captions": line.get("caption", []), "answers": line.get("answers", [])}
    features = {
        k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[t.encode() for t in v])) for k, v in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _hold_out(lines: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Splits by a hash of the medium. Both parts have an image where there are two, and so with videos."""
    held: set[str] = set()
    for kind in MEDIA_KEYS:
        media = sorted(
            {line[kind] for line in lines if kind in line}, key=lambda path: zlib.crc32(Path(path).name.encode())
        )
        count = min(max(round(share * len(media)), 1), len(media) - 1) if share > 0 and media else 0
        held |= set(media[:count])
    parts: tuple[list[dict], list[dict]] = ([], [])
    for line in lines:
        parts[any(line.get(k) in held for k in MEDIA_KEYS)].append(line)
    return parts


def read_jsonl(path: str, max_bad_share: float = 0.01) -> list[dict]:
    """Reads and checks a JSONL file of media with captions or questions.

    Returns:
        A dict a line: `id`, `image` or `video` (absolute path or address), `caption` (list) or `question` and
        `answers` (list).

    Raises:
        UserError: no such file, nothing in it, or more than `max_bad_share` of its lines are bad.
    """
    file = path if is_remote(path) else str(Path(path).expanduser().resolve())
    folder, name = os.path.split(file)
    try:
        texts = shards.read_file(file).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Expected a JSONL file in UTF-8 at {file}; {e}. Correct the path or the file.") from e
    good, bad, unknown = [], [], set()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = _check_line(json.loads(text))
        except ValueError as e:
            bad.append(f"{name}:{number}: {e}")
            logging.warning("left out %s/%s", folder, bad[-1])
            continue
        unknown |= set(line) - _KNOWN
        media = next(k for k in MEDIA_KEYS if k in line)
        line["id"] = str(line.get("id", f"{name}:{number}"))
        good.append({**line, media: resolve(line[media], folder)})
    if unknown:
        logging.warning("%s: fields that are not used: %s", file, ", ".join(sorted(unknown)))
    if not good or len(bad) > max_bad_share * (len(good) + len(bad)):
        raise UserError(
            f"Expected in {file} lines of the form {{'image' or 'video': path, 'caption': text}} or {{'image' or "
            f"'video': path, 'question': text, 'answers': [texts]}}; found {len(good)} such lines and {len(bad)} others"
            + (f", first {'; '.join(bad[:3])}" if bad else "")
            + f". Correct them, or allow a larger share than {max_bad_share:.1%} (max_bad_share)."
        )
    return good


def _texts(line: dict, key: str) -> list[str]:
    value = line[key] if isinstance(line[key], list) else [line[key]]
    if not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{key!r} is empty or not text")
    return [v.strip() for v in value]


def _check_line(line: Any) -> dict:
    """Returns the line with texts as lists. Raises ValueError saying what is wrong."""
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    media = [k for k in MEDIA_KEYS if k in line]
    if len(media) != 1 or not isinstance(line[media[0]], str) or not line[media[0]]:
        raise ValueError(f"needs one of 'image' and 'video' with a path{_hint(line)}")
    if ("caption" in line) == ("question" in line):
        raise ValueError(f"needs either 'caption' or 'question' with 'answers'{_hint(line)}")
    if "caption" in line:
        return {**line, "caption": _texts(line, "caption")}
    if "answers" not in line:
        raise ValueError(f"has 'question' but no 'answers'{_hint(line)}")
    if not isinstance(line["question"], str) or not line["question"].strip():
        raise ValueError("'question' is empty or not text")
    return {**line, "answers": _texts(line, "answers")}


def _hint(line: dict) -> str:
    unknown = sorted(set(line) - _KNOWN)
    return (
        f" (found {', '.join(f'{k!r}, near {trees.nearest(k, _KNOWN, 1)[0]!r}' for k in unknown)})" if unknown else ""
    )
