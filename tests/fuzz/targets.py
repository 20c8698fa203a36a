"""What reads files of others: each target takes the bytes of one, and may raise `UserError` or `MediaError` only."""

import copy
import dataclasses
import functools
import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from tests import saved
from tests.data.files import clip
from tests.data.pair_files import write_tar, write_tfrecord
from vadapter.base import checksums
from vadapter.base.errors import UserError
from vadapter.data.reading import images, jsonl, video
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.pair_formats import Fields
from vadapter.data.reading.pair_readers import RangeReader
from vadapter.data.rows import vocabulary
from vadapter.recipes import gin_front
from vadapter.reports import files as report_files
from vadapter.runs import bundle
from vadapter.training import checkpoints, run_record
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.recognise import recognise

EXPECTED = (UserError, MediaError)


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that reads a file.

    Attributes:
        read: reads one, given its bytes and an empty folder.
        inputs: what is tried.
    """

    read: Callable[[bytes, Path], object]
    inputs: st.SearchStrategy[bytes]

    def __call__(self, data: bytes) -> None:
        """Reads a file. What is not expected comes out."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.read(data, Path(folder))
            except EXPECTED as error:
                assert len(str(error)) < 20_000


def changed(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """Files like the seeds: bytes of them replaced, put in, taken out, or cut off."""
    piece = st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f"]))
    edit = st.tuples(st.floats(0, 1), piece, st.integers(0, 16))

    def apply(seed: bytes, edits: list[tuple[float, bytes, int]], kept: float) -> bytes:
        data = bytearray(seed)
        for place, put, removed in edits:
            at = int(place * len(data))
            data[at : at + removed] = put
        return bytes(data[: int(len(data) * kept) + 1])

    kept = st.one_of(st.just(1.0), st.floats(0, 1))
    return st.builds(apply, st.sampled_from(seeds), st.lists(edit, max_size=4), kept)


ODD = [10**9, -1, 0, 1.5, "x", None, [], {}, True, 10**30, float("nan"), [[]], {"a": 1}, "\0", "../x", "9" * 400]


def changed_json(seed: object) -> st.SearchStrategy[bytes]:
    """JSON like a seed: some of its values replaced by odd ones or left out, or other text."""
    values = st.one_of(
        st.sampled_from(ODD), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4)
    )
    edit = st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=5), values, st.booleans())

    def apply(edits: list[tuple[list[int], object, bool]]) -> bytes:
        made = json.loads(json.dumps(seed))
        for path, value, left_out in edits:
            inner = made
            for step in path:
                keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
                if not keys:
                    break
                key = keys[step % len(keys)]
                if step is path[-1] or not isinstance(inner[key], dict | list):
                    if left_out:
                        del inner[key]
                    else:
                        inner[key] = copy.deepcopy(value)
                    break
                inner = inner[key]
        return json.dumps(made).encode()

    made = st.builds(apply, st.lists(edit, min_size=1, max_size=3))
    return st.one_of(made, made, made.flatmap(lambda text: changed(text)))


def _into(read: Callable[[Path], object], name: str) -> Callable[[bytes, Path], object]:
    def reading(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return reading


@functools.cache
def _seeds() -> dict[str, bytes]:
    found = {}
    picture = Image.effect_noise((20, 12), 60)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000", "PPM", "TGA"):
        out = io.BytesIO()
        picture.convert("RGB").save(out, kind)
        found[kind] = out.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("mp4", "mkv", "avi"):
            found[ending] = clip(Path(folder) / f"a.{ending}", [20, 90, 160]).read_bytes()
        write_tar(Path(folder) / "a.tar", range(2))
        write_tfrecord(Path(folder) / "a.tfrecord", range(2))
        found |= {kind: (Path(folder) / f"a.{kind}").read_bytes() for kind in ("tar", "tfrecord")}
    arrays = {"model.embed_tokens.weight": np.zeros((4, 8), np.float32), "model.norm.weight": np.ones(8, np.float32)}
    return found | {"safetensors": save(arrays), "gguf": _gguf()}


def _gguf() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    values += [text("llama.block_count") + struct.pack("<II", 4, 1)]
    values += [text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + b"".join(values) + tensor
    return head + bytes(-len(head) % 32 + 64)


DECODER = {
    "model_type": "llama",
    **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
    **{"intermediate_size": 16, "vocab_size": 4, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": True,
}
ENCODER = {
    "model_type": "siglip_vision_model",
    **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    **{"image_size": 16, "patch_size": 8, "hidden_act": "gelu_pytorch_tanh"},
}
LINES = (
    b'{"image": "a.png", "caption": "x"}\n{"video": "b.mp4", "question": "what?", "answers": ["y", 2]}\n',
    b'{"image": "a.png", "caption": ["x", "\\ud83d"], "id": 3}\n',
)
CURVE = (
    b'{"step": 1, "split": "train", "loss": 2.5, "seconds": {"steps": 0.5}}\n'
    b'{"step": 2, "split": "val", "loss": 1.5, "image_reliance": 0.2, "cider": 1e3}\n'
)
GIN = (
    b"include 'runs/vlm.gin'\nBATCH_SIZE = 8\nOptimizerConfig.learning_rate = 1e-3\n",
    b"a/ViTConfig.width = %WIDTH\nWIDTH = (1, [2, {'a': None}])\nMODEL = @VLMConfig()\n",
    b"ViTConfig:\n  width = 1\n  depth = -2.5e3\n# a comment\nimport os\nfrom a import b as c\n",
)
TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "unk_token": "a"},
    "added_tokens": [{"id": 2, "content": "</s>", "special": True, "single_word": False, "lstrip": False}],
}


def _pairs(format_: str) -> Callable[[bytes, Path], object]:
    def read(path: Path) -> object:
        reader = RangeReader([str(path)], format_, Fields(), str(path.parent / "cache"))
        return [record.error for record in reader.read(np.arange(len(reader)))]

    return _into(read, f"a.{format_}")


def _import(data: bytes, folder: Path) -> object:
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(_seeds()["safetensors"])
    return recognise(open_checkpoint(str(folder)))


@functools.cache
def _checkpoint() -> dict[str, bytes]:
    """The files of a small checkpoint, by their paths in it. Without checksums, as older versions wrote it: these would
    find nearly every change before anything is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved.save_params(folder, {"adapter": {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)}})
        root = Path(folder) / "checkpoint_0"
        found = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    del found[checksums.FILE]
    record = {name: value for name, value in json.loads(found[run_record.FILE]).items() if name != "checksums"}
    return found | {run_record.FILE: json.dumps(record).encode()}


def _restore(data: bytes, folder: Path) -> object:
    """Reads a checkpoint of which one file, named by the first byte, has this content."""
    known = _checkpoint()
    for name, content in (known | {sorted(known)[data[0] % len(known)]: data[1:]}).items():
        path = folder / "checkpoint_0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    step = checkpoints.newest(str(folder))
    if step is None:
        return None
    with checkpoints.Checkpointer(str(folder), read_only=True) as checkpointer:
        return checkpointer.run(step), checkpointer.read(step, checkpointer.shapes(step))


def _curve(path: Path) -> object:
    (path.parent / "model.json").write_text("{}")
    return report_files.load_run(path.parent)


def _gin(path: Path) -> object:
    return gin_front.parse_gin([str(path)], complete=False)


@functools.cache
def targets(bundle_json: str) -> dict[str, Target]:
    """Returns the targets by name. `bundle_json` is the text of a good bundle.json."""
    seeds = _seeds()
    pictures = [seeds[kind] for kind in seeds if kind.isupper()]
    clips = [seeds[ending] for ending in ("mp4", "mkv", "avi")]
    return {
        "image": Target(lambda data, _: images.decode(data, 16), changed(*pictures)),
        "video": Target(lambda data, _: video.decode(data, 2, 16), changed(*clips)),
        "jsonl": Target(_into(lambda path: jsonl.read_jsonl(str(path)), "a.jsonl"), changed(*LINES)),
        "pairs jsonl": Target(_pairs("jsonl"), changed(*LINES)),
        "tar": Target(_pairs("tar"), changed(seeds["tar"])),
        "tfrecord": Target(_pairs("tfrecord"), changed(seeds["tfrecord"])),
        "gin": Target(_into(_gin, "a.gin"), changed(*GIN)),
        "bundle": Target(
            _into(lambda path: bundle.read(str(path.parent)), "bundle.json"), changed_json(json.loads(bundle_json))
        ),
        "checkpoint": Target(
            _restore, changed(*(bytes([i]) + content for i, (_, content) in enumerate(sorted(_checkpoint().items()))))
        ),
        "curve": Target(_into(_curve, "curve.jsonl"), changed(CURVE)),
        "decoder": Target(_import, changed_json(DECODER)),
        "encoder": Target(_import, changed_json(ENCODER)),
        "safetensors": Target(
            _into(lambda path: open_checkpoint(str(path)), "a.safetensors"), changed(seeds["safetensors"])
        ),
        "gguf": Target(_into(lambda path: open_checkpoint(str(path)), "a.gguf"), changed(seeds["gguf"])),
        "tokenizer": Target(
            _into(lambda path: vocabulary.load_vocabulary(str(path)), "tokenizer.json"), changed_json(TOKENIZER)
        ),
    }


NAMES = ("image", "video", "jsonl", "pairs jsonl", "tar", "tfrecord", "gin", "bundle", "decoder", "encoder")
NAMES += ("checkpoint", "curve", "safetensors", "gguf", "tokenizer")
