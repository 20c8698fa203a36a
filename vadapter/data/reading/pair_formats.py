"""One record of captioned media in each format of files."""

import dataclasses
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence

from vadapter.base import json_text
from vadapter.data.reading import shard_index, video
from vadapter.data.reading.records import Record, make_record, without_nulls

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclasses.dataclass(frozen=True)
class Fields:
    """How the parts of a record are named.

    Attributes:
        kind: `image` or `video`.
        media: feature or column with the encoded file (or a list of encoded frames, or a path beside the file); empty
            is `kind`. Of a tar file, where it plays no part, the ending tells.
        caption: feature, column or JSON field with the caption or a list of them; empty is `caption`. Of a tar file,
            empty takes `.txt` where there is one, and a name looks into `.json` only.
    """

    kind: str = "image"
    media: str = ""
    caption: str = ""

    @property
    def media_name(self) -> str:
        return self.media or self.kind

    @property
    def caption_name(self) -> str:
        return self.caption or "caption"

    @property
    def endings(self) -> tuple[str, ...]:
        return IMAGE_ENDINGS if self.kind == "image" else video.SUFFIXES


def _plain_members(raw: bytes) -> list[tuple[str, bytes]] | None:
    """`_members` where every header is a plain one of an ordinary file, as most are: many times as fast; else None."""
    found, at = [], 0
    while at < len(raw):
        header = raw[at : at + 512]
        try:
            size, checksum = int(header[124:136].rstrip(b" \0"), 8), int(header[148:156].strip(b" \0"), 8)
        except ValueError:
            return None
        name, prefix = (header[field].partition(b"\0")[0] for field in (slice(100), slice(345, 500)))
        name = prefix + b"/" + name if prefix else name
        plain = header[156:157] in (b"0", b"\0") and not name.endswith(b"/") and size >= 0
        if not plain or sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
            return None
        found.append((name.decode("utf-8", "surrogateescape"), raw[at + 512 : at + 512 + size]))
        at += 512 + -(-size // 512) * 512
    return found


def _members(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the ordinary files in a piece of a tar file."""
    padded = raw + bytes(1024 + -len(raw) % 512)  # as at the end of a file
    with tarfile.open(fileobj=io.BytesIO(padded), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content.read()


def members(raw: bytes) -> list[tuple[str, bytes]]:
    """Returns name and content of the ordinary files in a piece of a tar file."""
    found = _plain_members(raw)
    return list(_members(raw)) if found is None else found


def parse_tar(raw: bytes, id_: str, fields: Fields) -> Record:
    """Reads a sample of a WebDataset; the id gets its key."""
    media, text, described = None, None, None
    key = ""
    for name, content in members(raw):
        ending = os.path.splitext(name)[1].lower()
        key = shard_index.sample_key(name)
        if ending in fields.endings and media is None:
            media = content
        elif ending == ".txt":
            text = content
        elif ending == ".json":
            described = content
    id_ = f"{id_.rpartition(':')[0]}:{key}"
    if text is None or fields.caption:
        try:
            text = json_text.loads(described or b"{}").get(fields.caption_name)
        except (ValueError, AttributeError) as e:
            return Record(id_, error=f"has a .json that is not a JSON object ({e})")
    return make_record(id_, media, text, "")


def tar_check(fields: Fields) -> Callable[[Sequence[str]], str]:
    """Returns what `shard_index.index_tar` asks: what is missing in a sample with these members."""
    captions = {".json"} if fields.caption else {".txt", ".json"}

    def check(names: Sequence[str]) -> str:
        endings = [os.path.splitext(name)[1].lower() for name in names]
        if twice := [e for e in dict.fromkeys(endings) if endings.count(e) > 1 and e in {*fields.endings, *captions}]:
            alike = [name for name, e in zip(names, endings, strict=True) if e == twice[0]]
            shown = ", ".join([*alike[:3], *(["..."] if len(alike) > 3 else [])])
            return (
                f"{len(alike)} members end in {twice[0]} ({shown}): a sample is what has one name up to "
                "its first dot, so it may have one of each ending"
            )
        if not any(e in fields.endings for e in endings):
            return f"no {fields.kind} among {', '.join(list(dict.fromkeys(endings))[:5])}"
        return "" if captions & set(endings) else f"no {' or '.join(sorted(captions))} with a caption"

    return check


def parse_example(raw: bytes, id_: str, fields: Fields, folder: str) -> Record:
    """Reads a serialised tf.train.Example."""
    import tensorflow as tf

    try:
        features = tf.train.Example.FromString(raw).features.feature
    except Exception as e:  # protobuf's error is of no public type
        return Record(id_, error=f"not a tf.train.Example ({e})")
    if missing := [n for n in (fields.media_name, fields.caption_name) if n not in features]:
        return Record(id_, error=f"has no feature {missing[0]!r}; its features are {', '.join(sorted(features))}")
    media = list(features[fields.media_name].bytes_list.value)
    return make_record(id_, media, list(features[fields.caption_name].bytes_list.value), folder)


def parse_line(raw: bytes, id_: str, fields: Fields, folder: str) -> Record:
    """Reads a line of a JSONL file whose media are paths beside it."""
    line = without_nulls(json_text.loads(raw))
    return make_record(
        line.get("id") and str(line["id"]) or id_, line[fields.media_name], line[fields.caption_name], folder
    )


def line_check(fields: Fields) -> Callable[[bytes], str | None]:
    """Returns what `shard_index.index_lines` asks of a line. Lines of another kind are passed over."""

    def check(raw: bytes) -> str | None:
        try:
            line = json_text.loads(raw)
        except ValueError as e:
            return f"not JSON ({e})"
        if not isinstance(line, dict):
            return "not a JSON object"
        line = without_nulls(line)
        if fields.media_name not in line and ("image" in line or "video" in line):
            return None
        if fields.caption_name not in line and "question" in line:
            return None
        return make_record("", line.get(fields.media_name), line.get(fields.caption_name), "").error

    return check
