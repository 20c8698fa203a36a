"""Pictures, videos and text to what a model that vadapter exported reads.

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")

Pictures become squares as in training, by Pillow, and have their tiles behind them if they had them there. A video is a
list of frames, an array [F, h, w, 3], or the path of a file, which PyAV reads.
"""

import os
import re
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_MOST_PIXELS = 89_478_485  # a JPEG of more is decoded at a half or less of its size


def opened(image: Any, size: int | None, how: str) -> Image.Image:
    """A picture as upright RGB of 8 bits; what is transparent is white.

    Args:
        image: a PIL image, a uint8 array [h, w, 3], a path, or what else transformers loads (a URL, base64).
        size: that it is to have. A large JPEG is decoded at a fraction of its size, as in training, where `how` names
            no filter. None is its own size.
        how: see `square`.
    """
    if isinstance(image, str):
        image = Image.open(image) if os.path.isfile(image) else load_image(image)
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    if size and " " not in how and how != "center_crop" and image.format in ("JPEG", "MPO"):
        long = max(image.size)
        needed = [size * side // long if how == "pad" else size for side in image.size]
        image.draft("RGB", (max(needed[0], 1), max(needed[1], 1)))  # type: ignore[attr-defined]
    for part in (2, 4, 8):
        if image.format in ("JPEG", "MPO") and image.width * image.height > _MOST_PIXELS:
            image.draft(image.mode, (image.width // part, image.height // part))  # type: ignore[attr-defined]
    inverted = image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info
    image = ImageOps.exif_transpose(image)
    if inverted:  # Pillow reads every one as Adobe writes it
        return ImageChops.invert(image).convert("RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.nan_to_num(np.asarray(image, np.float32), posinf=np.inf, neginf=0)
        highest = float(grey.max(initial=0)) if image.mode == "F" else 65535.0
        top = next(top for top in (1.0, 255.0, 65535.0) if top == 65535.0 or highest <= top)
        return Image.fromarray((np.clip(grey / top, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, size: int, how: str) -> np.ndarray:
    """Resizes to uint8 [size, size, 3]: `stretch`, `crop`, `pad` or `center_crop`, then a filter and a ratio."""
    mode, *more = how.split()
    kind = Image.Resampling[more[0].upper() if more and more[0] in _FILTERS else "BILINEAR"]
    ratio = Fraction(more[-1]) if more and more[-1] not in _FILTERS else Fraction(1)
    if image.size == (size, size) and ratio == 1:
        return np.asarray(image)
    if mode == "stretch":
        return np.asarray(image.resize((size, size), kind))
    if mode == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), kind))
    width, height = image.size
    if mode == "pad":
        scale = size / max(image.size)
        wide, high = (min(max(round(side * scale), 1), size) for side in image.size)
        found = np.zeros((size, size, 3), np.uint8)
        top, left = (size - high) // 2, (size - wide) // 2
        found[top : top + high, left : left + wide] = np.asarray(image.resize((wide, high), kind))
        return found
    short, shorter = min(width, height), round(size * ratio)
    wide, high = (int(shorter * side / short) if side > short else shorter for side in image.size)
    left, top, x, y = (wide - size) // 2, (high - size) // 2, width / wide, height / high
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return np.asarray(image.resize((size, size), kind, box=box))


def grid_for(width: int, height: int, most: int) -> tuple[int, int]:
    """Columns and rows of at most `most` square tiles in which a picture is largest; of equal ones the fewest."""

    def pixels(grid: tuple[int, int]) -> float:
        scale = min(grid[0] / width, grid[1] / height)
        return round(width * height * scale**2, 6)

    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return min(grids, key=lambda grid: (-pixels(grid), grid[0] * grid[1]))


def tiles(image: Image.Image, most: int, size: int) -> list[np.ndarray]:
    """The tiles of a picture, row by row, each uint8 [size, size, 3]; none where one is enough.

    The picture keeps its aspect ratio, as large as it fits the grid, in the middle of black.
    """
    columns, rows = grid_for(*image.size, most) if most else (1, 1)
    if (columns, rows) == (1, 1):
        return []
    scale = min(columns * size / image.width, rows * size / image.height)
    wide = min(max(round(image.width * scale), 1), columns * size)
    high = min(max(round(image.height * scale), 1), rows * size)
    whole = np.zeros((rows * size, columns * size, 3), np.uint8)
    top, left = (rows * size - high) // 2, (columns * size - wide) // 2
    whole[top : top + high, left : left + wide] = np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR))
    return [
        whole[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    ]


def flat(items: Any) -> list[Any]:
    """Pictures of one prompt or of many as one list."""
    if items is None:
        return []
    if not isinstance(items, list | tuple):
        return [items]
    return [x for item in items for x in (flat(item) if isinstance(item, list | tuple) else [item])]


def is_video(item: Any) -> bool:
    """Whether it is one video and no list of them: a path, an array [F, h, w, 3], or a list of pictures."""
    if isinstance(item, str) or getattr(item, "ndim", 0) == 4:
        return True
    return (
        isinstance(item, list | tuple)
        and bool(item)
        and all(isinstance(x, Image.Image) or getattr(x, "ndim", 0) == 3 for x in item)
    )


def videos_of(items: Any) -> list[Any]:
    """Videos of one prompt or of many as one list."""
    if items is None:
        return []
    return [items] if is_video(items) else [video for item in items for video in videos_of(item)]


def read_frames(path: str, count: int) -> list[Any]:
    """Frames of a file: those that are shown in the middle of each of so many equal parts of its time."""
    import av

    with av.open(path) as container:
        frames = [frame for frame in container.decode(video=0) if frame.time is not None]
    if not frames:
        raise ValueError(f"{path} has no frames.")
    times = [frame.time for frame in frames]
    step = (times[-1] - times[0]) / max(len(times) - 1, 1)
    start, end = times[0], times[-1] + step
    wanted = start + (np.arange(count) + 0.5) * (end - start) / count
    return [frames[max(int(np.searchsorted(times, t, "right")) - 1, 0)].to_image() for t in wanted]


class VAdapterImageProcessor(BaseImageProcessor):
    """Pictures to normalised squares. `max_tiles` is the most tiles that `views` puts behind a picture."""

    model_input_names = ["pixel_values"]

    def __init__(self, size=224, resize="stretch", image_mean=(0.5,) * 3, image_std=(0.5,) * 3, max_tiles=0, **kwargs):
        super().__init__(**kwargs)
        self.size, self.resize, self.max_tiles = size, resize, max_tiles
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(self, images, *args, **kwargs):
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images, return_tensors=None, **kwargs):
        """Returns `pixel_values` f32 [N, 3, size, size]."""
        found = [self.normalised(image) for image in flat(images)]
        return BatchFeature({"pixel_values": np.stack(found)}, tensor_type=return_tensors)

    def views(self, image: Any) -> np.ndarray:
        """A picture and its tiles: [n, 3, size, size]."""
        whole = opened(image, None, self.resize) if self.max_tiles else None
        shown = tiles(whole, self.max_tiles, self.size) if whole is not None else []
        return np.stack([self.normalised(image), *map(self.scaled, shown)])

    def normalised(self, image: Any) -> np.ndarray:
        """The whole picture: [3, size, size]."""
        return self.scaled(square(opened(image, self.size, self.resize), self.size, self.resize))

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.astype(np.float32) / np.float32(255)
        mean, std = (np.asarray(values, np.float32) for values in (self.image_mean, self.image_std))
        return ((pixels - mean) / std).transpose(2, 0, 1)


class VAdapterProcessor(ProcessorMixin):
    """Text with marks for media, and the media.

    A picture at `image_token` is shown as in conversations of the training: with its tiles, and as a clip that stands
    still where it is beside a video or `stills_are_clips`. At `whole_token`, which the chat template writes for prompts
    that the training had with pictures alone, it is the picture alone.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_token="<image>",
        video_token="<video>",
        num_image_tokens=1,
        num_video_tokens=1,
        num_frames=1,
        whole_token="<whole image>",
        stills_are_clips=False,
        **kwargs,
    ):
        self.whole_token, self.stills_are_clips = whole_token, stills_are_clips
        self.image_token, self.video_token = image_token, video_token
        self.num_image_tokens, self.num_video_tokens = num_image_tokens, num_video_tokens
        self.num_frames = num_frames
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, videos=None, return_tensors=None, **kwargs):
        """Writes text.

        Args:
            images: as many as the text has marks for images, in their order; may be nested by prompt.
            text: one or several, with `image_token` or `video_token` where a medium goes.
            videos: likewise.
            return_tensors: "pt" gives tensors.

        Returns:
            `input_ids`, `attention_mask`, and `pixel_values`, `pixel_values_videos` where there are such media.
        """
        pictures, clips = flat(images), videos_of(videos)
        texts = [text] if isinstance(text, str) else list(text or ())
        for marks, media in (((self.image_token, self.whole_token), pictures), ((self.video_token,), clips)):
            if (found := sum(t.count(mark) for t in texts for mark in marks)) != len(media):
                raise ValueError(f"The text has {found} places for {marks[0]}, and {len(media)} were given.")
        texts, pictures, clips = self._written(texts, pictures, clips)
        known = ("add_special_tokens", "padding", "padding_side", "truncation", "max_length")
        options = {key: value for key, value in kwargs.items() if key in known}
        for group in ("text_kwargs", "common_kwargs"):
            options |= {key: value for key, value in (kwargs.get(group) or {}).items() if key in known}
            return_tensors = (kwargs.get(group) or {}).get("return_tensors", return_tensors)
        begun = self.tokenizer.bos_token
        if begun and texts and all(text.startswith(begun) for text in texts):
            options.setdefault("add_special_tokens", False)  # a chat template has written it already
        data = dict(self.tokenizer(texts, return_token_type_ids=False, **options))
        if pictures:
            data["pixel_values"] = np.stack(pictures)
        if clips:
            data["pixel_values_videos"] = np.stack(clips)
        return BatchFeature(data, tensor_type=return_tensors)

    def _written(self, texts: list[str], pictures: list, clips: list) -> tuple[list[str], list, list]:
        """The texts with a mark for each visual token, and the pixels of pictures [3, h, w] and clips [F, 3, h, w]."""
        image, video = self.image_token * self.num_image_tokens, self.video_token * self.num_video_tokens
        marks = "|".join(map(re.escape, (self.image_token, self.whole_token, self.video_token)))
        next_picture, next_clip = iter(pictures), iter(clips)
        still: list[np.ndarray] = []
        moving: list[np.ndarray] = []
        made = []
        for text in texts:
            as_clips = self.stills_are_clips or self.video_token in text

            def shown(found: re.Match, as_clips: bool = as_clips) -> str:
                if found[0] == self.video_token:
                    moving.append(self._clip(next(next_clip)))
                    return video
                if found[0] == self.whole_token:
                    still.append(self.image_processor.normalised(next(next_picture)))
                    return image
                views = self.image_processor.views(next(next_picture))
                if as_clips:
                    moving.extend(np.repeat(view[None], self.num_frames, 0) for view in views)
                    return video * len(views)
                still.extend(views)
                return image * len(views)

            made.append(re.sub(marks, shown, text))
        return made, still, moving

    def _clip(self, video: Any) -> np.ndarray:
        """[F, 3, h, w]; frames repeat where there are fewer."""
        if isinstance(video, str):
            frames = read_frames(video, self.num_frames)
        else:
            total, count = len(video), self.num_frames
            times = (np.arange(count) + 0.5) * total / count
            frames = [video[min(total - 1, int(t))] for t in times]
        return np.stack([self.image_processor.normalised(x) for x in frames])

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos"]
