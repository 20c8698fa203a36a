"""Readers of checkpoint files: names, shapes and rows come out as they were written, and broken files are named."""

import io
import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import serialization
from safetensors.numpy import save_file

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.weights import files_npz
from vadapter.weights.checkpoint import open_checkpoint

RNG = np.random.default_rng(0)
ARRAYS = {
    "f32/stacked": RNG.standard_normal((5, 3, 4)).astype(np.float32),
    "f16/table": RNG.standard_normal((7, 2)).astype(np.float16),
    "bf16/table": RNG.standard_normal((6, 4)).astype(ml_dtypes.bfloat16),
    "i32/row": np.arange(3, dtype=np.int32),
    "f32/scalar": np.array(2.5, np.float32),
}
PARTS = [(0, None), (0, 1), (1, 2), (2, 3), (1, None), (0, 2)]


def check(tensors, arrays=ARRAYS):
    """Every array comes out whole and in parts, in any order."""
    assert {name: (x.shape, x.dtype) for name, x in arrays.items()} == {
        name: (info.shape, info.dtype) for name, info in tensors.infos.items()
    }
    for name, x in arrays.items():
        for start, stop in PARTS if x.ndim else [(0, None)]:
            read = tensors.read(name, start, stop)
            assert read.dtype == x.dtype
            np.testing.assert_array_equal(read, x[start:stop] if x.ndim else x)


# ---- Hugging Face


def huggingface(folder: Path, shards: int = 2, config: dict | None = None) -> Path:
    folder.mkdir()
    names = sorted(ARRAYS)
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: ARRAYS[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "some"}))
    return folder


def test_a_folder_of_shards(tmp_path):
    folder = huggingface(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text('{"a": 1}')
    opened = open_checkpoint(str(folder))
    assert (opened.kind, opened.folder, opened.config) == ("huggingface", str(folder), {"model_type": "some"})
    assert opened.extra == {"tokenizer_config.json": {"a": 1}}
    check(opened.tensors)


@pytest.mark.parametrize("by_file", [True, False])
def test_a_single_safetensors_file(tmp_path, by_file):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    opened = open_checkpoint(str(tmp_path / "model.safetensors" if by_file else tmp_path))
    assert (opened.kind, opened.folder, opened.config) == ("huggingface", str(tmp_path), None)
    check(opened.tensors)


def cut(path: Path, bytes_left: int | float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: bytes_left if isinstance(bytes_left, int) else int(len(content) * bytes_left)])


@pytest.mark.parametrize("left", [0, 4, 20, 0.5, 0.99])
def test_a_truncated_safetensors_file_is_named(tmp_path, left):
    folder = huggingface(tmp_path / "model")
    cut(folder / "model-1.safetensors", left)
    with pytest.raises(UserError, match=r"model-1\.safetensors is no complete safetensors file"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    "garbage",
    [b"garbage, and more of it", b"\x08" + b"\0" * 7 + b"not json", (2**60).to_bytes(8, "little") + b"{}"],
)
def test_a_corrupt_safetensors_header_is_named(tmp_path, garbage):
    (tmp_path / "model.safetensors").write_bytes(garbage)
    with pytest.raises(UserError, match=r"model\.safetensors is no complete safetensors file"):
        open_checkpoint(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path):
    folder = huggingface(tmp_path / "model")
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json names model-1\.safetensors, which .* does not have"):
        open_checkpoint(str(folder))


def test_a_shard_outside_of_the_folder_is_refused(tmp_path):
    folder = huggingface(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model-1.safetensors"}}')
    with pytest.raises(UserError, match=r"\.\./model-1"):
        open_checkpoint(str(folder))


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path):
    folder = huggingface(tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lost"] = "model-0.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"says that lost is in model-0\.safetensors"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[1]"])
def test_broken_json_is_named(tmp_path, name, content):
    folder = huggingface(tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        open_checkpoint(str(folder))


def test_shards_without_an_index_are_refused(tmp_path):
    folder = huggingface(tmp_path / "model")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="2 .safetensors files .*model-0.safetensors.*no model.safetensors.index.json"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name}: PyTorch pickles are not read.*safetensors version"):
            open_checkpoint(str(path))


# ---- .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz(tmp_path, save, order, monkeypatch):
    monkeypatch.setattr(files_npz, "_BLOCK", 7 * 4 * 3)  # several blocks an array
    path = tmp_path / "vit.npz"
    stored = {name: x.view("V2") if x.dtype == ml_dtypes.bfloat16 else x for name, x in ARRAYS.items()}
    save(path, **{name: np.asarray(x, order=order) for name, x in stored.items()})
    opened = open_checkpoint(str(path))
    assert (opened.kind, opened.config, opened.folder) == ("big_vision", None, None)
    check(opened.tensors)
    assert open_checkpoint(str(tmp_path)).kind == "big_vision"


def test_reading_layers_in_their_order_reads_the_array_once(tmp_path, monkeypatch):
    path = tmp_path / "vit.npz"
    np.savez_compressed(path, a=ARRAYS["f32/stacked"])
    tensors = open_checkpoint(str(path)).tensors
    opened = []
    open_member = zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name: opened.append(name) or open_member(self, name))
    for i in range(5):
        np.testing.assert_array_equal(tensors.read("a", i, i + 1), ARRAYS["f32/stacked"][i : i + 1])
    assert opened == ["a.npy"]


def test_npz_with_pickled_objects_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", good=np.zeros(2), bad=np.array([Trap()], dtype=object))
    with pytest.raises(UserError, match="a.npz: bad is an array of Python objects"):
        open_checkpoint(str(tmp_path / "a.npz"))


def test_npz_of_text_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", words=np.array(["a", "b"]))
    with pytest.raises(UserError, match="words has the dtype <U1; expected numbers"):
        open_checkpoint(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.99])
def test_a_truncated_npz_is_named(tmp_path, left):
    np.savez(tmp_path / "a.npz", **{name: x for name, x in ARRAYS.items() if "bf16" not in name})
    cut(tmp_path / "a.npz", left)
    with pytest.raises(UserError, match=r"a\.npz is no complete \.npz file"):
        open_checkpoint(str(tmp_path / "a.npz"))


def test_an_npz_with_damaged_data_is_named_with_the_array(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, kernel=np.arange(100_000, dtype=np.float32))
    content = bytearray(path.read_bytes())
    content[200_000] ^= 0xFF
    path.write_bytes(content)
    tensors = open_checkpoint(str(path)).tensors
    with pytest.raises(UserError, match=r"a\.npz is no complete \.npz file \(kernel: Bad CRC-32"):
        tensors.read("kernel")


def test_an_npz_array_shorter_than_its_header_says_is_named(tmp_path):
    whole = io.BytesIO()
    np.save(whole, np.arange(100, dtype=np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("kernel.npy", whole.getvalue()[:-40])
    tensors = open_checkpoint(str(tmp_path / "a.npz")).tensors
    assert tensors.read("kernel", 0, 50)[49] == 49
    with pytest.raises(UserError, match="kernel: the data ends too early"):
        tensors.read("kernel")


# ---- Orbax


def orbax(path: Path, flat: dict, **options) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, ocp.args.PyTreeSave(trees.unflatten(flat)))


GEMMA = {
    "transformer/embedder/input_embedding": ARRAYS["bf16/table"],
    "transformer/layer_0/attn/q_einsum/w": ARRAYS["f32/stacked"],
    "transformer/final_norm/scale": ARRAYS["f16/table"],
}
FORMATS = [{"use_ocdbt": True}, {"use_ocdbt": False}, {"use_ocdbt": True, "use_zarr3": True}, {"use_zarr3": True}]


PLACES = ["", "state", "default", "params"]


@pytest.mark.parametrize(("item", "options"), [*(("", x) for x in FORMATS), *((x, {}) for x in PLACES)], ids=str)
def test_gemma_in_orbax(tmp_path, item, options):
    orbax(tmp_path / "gemma" / item, GEMMA, **options)
    opened = open_checkpoint(str(tmp_path / "gemma"))
    assert (opened.kind, opened.folder, opened.config) == ("gemma", str(tmp_path / "gemma"), None)
    check(opened.tensors, GEMMA)


def test_flat_keys_with_slashes_are_the_same_paths(tmp_path):
    flat = {"transformer/embedder": {"input_embedding": np.ones((2, 3), np.float32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "gemma", ocp.args.PyTreeSave(flat))
    opened = open_checkpoint(str(tmp_path / "gemma"))
    check(opened.tensors, {"transformer/embedder/input_embedding": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize("prefix", ["target/", "optimizer/target/", "params/"])
def test_t5x_in_orbax(tmp_path, prefix):
    state = {prefix + name: x for name, x in ARRAYS.items()} | {"state/step": np.array(3), "none": None}
    orbax(tmp_path / "checkpoint_3" / "state", state)
    opened = open_checkpoint(str(tmp_path / "checkpoint_3"))
    assert opened.kind == "t5x"
    check(opened.tensors)


def test_an_unknown_orbax_tree_lists_its_names(tmp_path):
    orbax(tmp_path / "x", {"net/w": np.ones(2)})
    with pytest.raises(UserError, match="of no known kind.*found net/w"):
        open_checkpoint(str(tmp_path / "x"))


def test_an_orbax_checkpoint_without_an_array_names_it(tmp_path):
    orbax(tmp_path / "gemma", GEMMA, use_ocdbt=False)
    metadata = tmp_path / "gemma" / "transformer.final_norm.scale" / ".zarray"
    metadata.unlink()
    with pytest.raises(UserError, match="gemma: transformer/final_norm/scale cannot be read"):
        open_checkpoint(str(tmp_path / "gemma"))


def test_an_orbax_array_without_its_data_is_not_zeros(tmp_path):
    orbax(tmp_path / "gemma", GEMMA, use_ocdbt=False)
    (tmp_path / "gemma" / "transformer.final_norm.scale" / "0.0").unlink()
    tensors = open_checkpoint(str(tmp_path / "gemma")).tensors
    with pytest.raises(UserError, match="gemma: transformer/final_norm/scale cannot be read"):
        tensors.read("transformer/final_norm/scale")


def test_damaged_orbax_metadata_is_named(tmp_path):
    orbax(tmp_path / "gemma", GEMMA)
    cut(tmp_path / "gemma" / "_METADATA", 0.5)
    with pytest.raises(UserError, match="_METADATA is no list of the arrays"):
        open_checkpoint(str(tmp_path / "gemma"))


# ---- t5x, legacy


def t5x_legacy(folder: Path, old: bool) -> None:
    """A checkpoint with its first two arrays in zarr folders, as t5x writes those that are sharded."""
    folder.mkdir()
    flat = dict(ARRAYS)
    for name in list(flat)[:2]:
        x, stored = flat[name], "target." + name.replace("/", ".")
        kvstore = {"driver": "file", "path": str(folder / stored) + "/"}
        array = ts.open({"driver": "zarr", "kvstore": kvstore}, create=True, dtype=x.dtype, shape=x.shape).result()
        array[...].write(x).result()
        spec = {"driver": "zarr", "dtype": x.dtype.name, "metadata": {"shape": list(x.shape)}}
        path = {"path": stored} if old else {}
        spec |= path | {"kvstore": {"driver": "gfile", **({} if old else {"path": stored + "/"})}}
        flat[name] = spec
    content = {"version": 3, "optimizer": {"target": trees.unflatten(flat), "state": {"step": np.array(1)}}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


@pytest.mark.parametrize("old", [True, False])
def test_t5x_legacy(tmp_path, old):
    t5x_legacy(tmp_path / "checkpoint_1", old)
    opened = open_checkpoint(str(tmp_path / "checkpoint_1"))
    assert opened.kind == "t5x"
    check(opened.tensors)


@pytest.mark.parametrize("left", [0, 10, 0.6])
def test_a_truncated_t5x_checkpoint_is_named(tmp_path, left):
    t5x_legacy(tmp_path / "checkpoint_1", False)
    cut(tmp_path / "checkpoint_1" / "checkpoint", left)
    with pytest.raises(UserError, match="checkpoint_1/checkpoint is no checkpoint of t5x"):
        open_checkpoint(str(tmp_path / "checkpoint_1"))


# ---- anything else


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing/here does not exist. Expected a Hugging Face folder"):
        open_checkpoint(str(tmp_path / "nothing" / "here"))


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    huggingface(tmp_path / "model")
    assert open_checkpoint("~/model").kind == "huggingface"


def test_an_unknown_folder_lists_what_is_in_it(tmp_path):
    (tmp_path / "weights.h5").write_text("")
    with pytest.raises(UserError, match="holds no weights of a known kind.*npz.*t5x.*found weights.h5"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match="weights.h5 is no file of weights that is known"):
        open_checkpoint(str(tmp_path / "weights.h5"))


def test_a_bucket_is_no_source():
    with pytest.raises(UserError, match="gs://bucket/model is not on this machine"):
        open_checkpoint("gs://bucket/model")
