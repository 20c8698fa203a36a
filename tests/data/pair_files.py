"""The same captioned images in each format of training files."""

import io
import json
import tarfile
from typing import Any

import numpy as np
from PIL import Image

from tests.data.loaders import make_loader

ENDINGS = {"tar": "tar", "tfrecord": "tfrecord", "array_record": "array_record", "parquet": "parquet", "jsonl": "jsonl"}


def colour(i: int) -> tuple[int, int, int]:
    """The colour of image i."""
    return (i * 37) % 256, (i * 91) % 256, (i * 53) % 256


def png(i: int, size: int = 24) -> bytes:
    """Image i."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour(i)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(i: int) -> str:
    return f"picture {i}"


def index_of(text: str) -> int:
    return int(text.split()[-1])


def add(archive: tarfile.TarFile, name: str, data: bytes, **changes) -> None:
    """Adds a member; `changes` to its header."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def write_tar(path, numbers, caption_as: str = "txt"):
    with tarfile.open(path, "w") as archive:
        for i in numbers:
            add(archive, f"part/{i:05d}.png", png(i))
            text = caption(i) if caption_as == "txt" else json.dumps({"caption": caption(i), "url": "http://x"})
            add(archive, f"part/{i:05d}.{caption_as}", text.encode())


def example(**features) -> bytes:
    """A serialised tf.train.Example of bytes and lists of bytes."""
    import tensorflow as tf

    lists = {k: v if isinstance(v, list) else [v] for k, v in features.items()}
    made = {k: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)) for k, v in lists.items()}
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def write_tfrecord(path, numbers):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as file:
        for i in numbers:
            file.write(example(image=png(i), caption=caption(i).encode()))


def write_array_record(path, numbers):
    from array_record.python.array_record_module import ArrayRecordWriter

    file = ArrayRecordWriter(str(path), "group_size:1")
    for i in numbers:
        file.write(example(image=png(i), caption=caption(i).encode()))
    file.close()


def write_parquet(path, numbers, rows: int = 4, columns=None):
    import pyarrow as pa
    from pyarrow import parquet

    columns = columns or {
        "image": [png(i) for i in numbers],
        "caption": [caption(i) for i in numbers],
        "extra": numbers,
    }
    parquet.write_table(pa.table(columns), path, row_group_size=rows)


def write_jsonl(path, numbers):
    for i in numbers:
        (path.parent / f"{i}.png").write_bytes(png(i))
    lines = [json.dumps({"image": f"{i}.png", "caption": caption(i)}) for i in numbers]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(folder, format_: str, count: int = 20, files: int = 3) -> str:
    """Writes images 0..count-1 to several files, and returns the pattern that names them."""
    writer = globals()[f"write_{format_}"]
    for k, numbers in enumerate(np.array_split(np.arange(count), files)):
        writer(folder / f"web-{k:03d}.{ENDINGS[format_]}", numbers.tolist())
    return f"{folder}/web-{{000..{files - 1:03d}}}.{ENDINGS[format_]}"


# Reading them


def register(files, **settings):
    from vadapter.data import tasks

    return tasks.pairs_task("pairs", files, **{"holdout": 0.0, "vocabulary": "scenes", **settings})


def loader(name="pairs", index=0, count=1, **changes):
    return make_loader(name, index, count, **({"batch_size": 4, "max_bad_share": 0.5} | changes))


def rows(name="pairs", **changes):
    settings: dict[str, Any] = {"split": "train", **changes}
    found = [row for _, part in loader(name, **settings).eval_batches() for row in part]
    return [row for row in found if row["id"]]


def read(files, **settings):
    """Captions of the records that can be used, in order."""
    return [row["references"][0] for row in rows(register(files, **settings)) if row["valid"]]
