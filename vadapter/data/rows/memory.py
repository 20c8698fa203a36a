"""Batches of images and texts that are in memory: no data set, no TensorFlow.

    batch(["photo.jpg", image], "caption", ["a red ball", "a dog"], vocabulary=words, lengths=lengths, sizes=sizes)

makes the rows that a task of the same records and the same prompt has in training. Without targets it makes rows for
decoding, which hold prompts only.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data.reading import images as pictures
from vadapter.data.reading import storage, tiles, video
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.records import clean
from vadapter.data.rows import prompts
from vadapter.data.rows.converters import TextRows, stacked
from vadapter.data.rows.preprocessors import chat_prompt
from vadapter.data.rows.sizes import WHOLE, Sizes, TooLong, Views, check_lengths, layout_of
from vadapter.data.rows.text_vocabulary import TextVocabulary

# A PIL image; uint8 [h, w, 3], or [F, h, w, 3] for a video; the path of an image or a video; a list of frames; or what
# `read` made of one of these.
Media: TypeAlias = Any
_Path = (str, os.PathLike)
Texts: TypeAlias = str | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A picture or a video as a model takes it.

    Attributes:
        frames: uint8 [n, F, h, w, 3]: itself, and the tiles of a picture.
        video: which it is.
    """

    frames: np.ndarray
    video: bool = False


def batch(
    images: Sequence[Media] | None,
    prompt: Texts | None,
    targets: Texts | None = None,
    questions: Texts | None = None,
    *,
    vocabulary: TextVocabulary,
    lengths: Mapping[str, int],
    sizes: Sizes,
    resize: str = "stretch",
    copies: int = 1,
    num_media: int = 0,
) -> Batch:
    """Makes a batch of images or videos with texts.

    Args:
        images: one a row, all of them images or all of them videos. Each is a PIL image, a uint8 array [h, w, 3] or
            (a video) [F, h, w, 3], the path of a file, a list of images: a video, or what `read` gave. None makes rows
            of text only.
        prompt: for all rows, or one a row: a name in data/prompts or a template with `<media>`; plain text where
            there are no images. None is a turn of a conversation: the image, and the question behind it.
        targets: texts to predict; None makes rows for decoding, which hold prompts only.
        questions: fill the `<question>` of the prompts; None for prompts without one.
        vocabulary: the model's.
        lengths: `inputs` and `targets`, slots of text; see `LoaderConfig`.
        sizes: what the model takes.
        resize: how pictures become square, see `images.resize`; as in the model's training.
        copies: of the whole, for meshes that split the batch.
        num_media: room of a row for images with their tiles; 0 is the most that one has.

    Returns:
        A batch of numpy arrays, B = the number of images (or of texts) times `copies`. All targets have weight 1.

    Raises:
        UserError: an image that cannot be read, named by its place; a text that does not fit; images and videos
            together; numbers of texts and images that differ; or a prompt that is not a template.
    """
    check_lengths(lengths)
    count = _count(images, prompt, targets, questions)
    shown = [seen.frames for seen in read(images, sizes, resize)] if images is not None else []
    media = _stacked(shown, num_media, images or ()) if shown else np.zeros((count, 0, 1, 1, 1, 3), np.uint8)
    if images is not None and (frames := media.shape[2]):
        sizes.check_frames(frames)
    layout = layout_of(lengths, sizes, media.shape[1:], for_decoding=targets is None)
    rows, kind = [], TextRows(vocabulary)
    for i, (template, question, target) in enumerate(
        zip(*(_each(texts, count) for texts in (prompt, questions, targets)), strict=True), 1
    ):
        place = f" of row {i} of {count}" if count > 1 else ""
        views = len(shown[i - 1]) if shown else 0
        inputs = _inputs(template, question, vocabulary, views)
        _check_fits("prompt" + place, len(inputs) + 1 - views, "inputs", lengths)
        ids = [] if target is None else vocabulary.answer(target)
        _check_fits("target" + place, len(ids), "targets", lengths)
        rows.append(kind.row({"inputs": inputs, "targets": ids}, layout))
    arrays = {key: np.concatenate([values] * copies) for key, values in stacked(rows).items()}
    return kind.batch(arrays, np.concatenate([media] * copies), np.ones(count * copies, bool))


def _stacked(shown: Sequence[np.ndarray], num_media: int, images: Sequence[Media]) -> np.ndarray:
    """Media as rows have them, uint8 [B, M, F, h, w, 3]: of each so many as it has, the rest are zeros."""
    kinds = [is_video(image) for image in images]
    if len(set(kinds)) > 1:
        raise UserError(
            f"Expected images only or videos only in one batch; found {kinds.count(False)} images and "
            f"{kinds.count(True)} videos, such as place {kinds.index(True) + 1}. Make a batch of each."
        )
    made = np.zeros((len(shown), max(num_media, *map(len, shown)), *shown[0].shape[1:]), np.uint8)
    for row, frames in zip(made, shown, strict=True):
        row[: len(frames)] = frames
    return made


def _inputs(template: str | None, question: str | None, vocabulary: TextVocabulary, num_media: int) -> np.ndarray:
    if template is None:
        asked = clean(question or "").replace(prompts.OBJECT, "")
        return np.asarray(chat_prompt((prompts.OBJECT * num_media + asked).strip(), vocabulary), np.int32)
    if num_media:
        template = prompts.resolve(template, question is not None)
        return prompts.write(template, vocabulary, question, num_media=num_media)[0]
    if prompts.MEDIA in template:
        raise UserError(
            f"Expected prompts without {prompts.MEDIA}, since no images were given; found {template!r}. Give the "
            "images, or change the prompt."
        )
    text = template.replace(prompts.QUESTION, prompts.bare_question(question or ""))
    return np.asarray([*vocabulary.head(text), *vocabulary.tail("")], np.int32)


def _check_fits(what: str, tokens: int, key: str, lengths: Mapping[str, int]) -> None:
    if (over := tokens - lengths[key]) > 0:
        counted = "the start token" if key == "inputs" else "its end token"
        raise TooLong(
            f"The {what} has {tokens} tokens with {counted}; the model reads {lengths[key]}, so {over} do not fit. "
            f"Shorten it, or train with longer {key!r} (TASK_FEATURE_LENGTHS).",
            tokens,
            lengths[key],
        )


def _count(images: Sequence[Media] | None, *texts: Texts | None) -> int:
    """Returns the number of rows."""
    found = [len(x) for x in (images, *texts) if x is not None and not isinstance(x, str)] or [1]
    if len(set(found)) > 1 or not found[0]:
        raise UserError(
            "Expected images, prompts, targets and questions of one number, at least 1 (a single text serves all "
            f"rows); found {', '.join(map(str, found))}. Give one a row."
        )
    return found[0]


def _each(texts: Texts | None, count: int) -> Sequence[str | None]:
    return [texts] * count if texts is None or isinstance(texts, str) else texts


# Media


def is_video(image: Media) -> bool:
    """Whether media are a video: a list of frames, an array [F, h, w, 3], or a path that ends like a video's."""
    if isinstance(image, Seen):
        return image.video
    if isinstance(image, _Path):
        return video.is_video(os.fspath(image))
    return isinstance(image, list | tuple) or getattr(image, "ndim", 3) == 4


def read(images: Sequence[Media], sizes: Sizes, resize: str = "stretch", views: Views = WHOLE) -> list[Seen]:
    """Reads images and videos.

    Args:
        images: see `batch`.
        sizes: what the model takes.
        resize: see `batch`.
        views: how images are seen. F is 1 for them, unless they are clips.

    Raises:
        UserError: one cannot be read; it is named by its place.
    """
    found = []
    for i, image in enumerate(images, 1):
        name = f", {image}" if isinstance(image, _Path) else ""
        try:
            found.append(image if isinstance(image, Seen) else _seen(image, sizes, resize, views))
        except (MediaError, OSError, UserError) as e:
            what = "video" if is_video(image) else "image"
            end = "" if isinstance(e, UserError) else ". Replace it or leave it out."
            raise UserError(f"Reading {what} {i} of {len(images)}{name}: {e}{end}") from e
    return found


def _seen(image: Media, sizes: Sizes, resize: str, views: Views) -> Seen:
    if is_video(image):
        return Seen(_frames(image, sizes, resize)[None], video=True)
    shown = [_picture(image, sizes.image_size, resize), *_tiles(image, sizes, views)]
    return still(shown, sizes.num_frames if views.clips else 1)


def still(shown: Sequence[np.ndarray], frames: int) -> Seen:
    """A picture, and its tiles if it has some, each uint8 [h, w, 3], that stand still for so many frames."""
    stack = np.stack(shown)[:, None]
    return Seen(np.broadcast_to(stack, (len(stack), frames, *stack.shape[2:])))


def _tiles(image: Media, sizes: Sizes, views: Views) -> list[np.ndarray]:
    if not views.max_tiles:
        return []
    if isinstance(image, _Path):
        whole: Any = storage.read_file(os.fspath(image), pictures.MAX_BYTES)
    else:
        whole = pictures.rgb(image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image)))
    return tiles.tiles_of(whole, views.max_tiles, sizes.image_size)


def _frames(image: Media, sizes: Sizes, resize: str) -> np.ndarray:
    """Returns those of a video, uint8 [F, h, w, 3]."""
    if isinstance(image, _Path):
        return video.load(os.fspath(image), sizes.num_frames, sizes.image_size, resize)
    frames: list[Any] = [*image]
    if not frames:
        raise MediaError("has no frames")
    chosen = video.sample_indices(len(frames), sizes.num_frames)
    decoded = {k: _picture(frames[k], sizes.image_size, resize) for k in set(chosen)}
    return np.stack([decoded[k] for k in chosen])


def _picture(image: Media, size: int, resize: str) -> np.ndarray:
    """Returns uint8 [h, w, 3]."""
    if isinstance(image, Image.Image):
        return pictures.from_pil(image, size, resize)
    if isinstance(image, _Path):
        return pictures.load(os.fspath(image), size, resize)
    if not hasattr(image, "__array__"):
        raise MediaError(f"expected a PIL image, an array or a path; found {type(image).__name__}")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        advice = ""
        if np.issubdtype(pixels.dtype, np.floating):
            advice = ": convert values of 0..1 by (255 * image).round().astype(numpy.uint8)"
        raise MediaError(
            f"expected RGB pixels 0..255, a uint8 array [height, width, 3]; found {pixels.dtype} "
            f"{list(pixels.shape)}{advice}"
        )
    return pictures.resize(Image.fromarray(np.ascontiguousarray(pixels)), size, resize)


def by_kind(images: Sequence[Media]) -> Iterator[list[int]]:
    """Yields the places of all images, then those of all videos, as far as there are some: a batch has one kind."""
    for kind in (False, True):
        if places := [i for i, image in enumerate(images) if is_video(image) == kind]:
            yield places
