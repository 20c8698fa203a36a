"""GGUF files: the same model comes out as from Hugging Face's folder, and what cannot be read is named."""

import builtins
import shutil

import gguf
import ml_dtypes
import numpy as np
import pytest

from tests.weights import families, gguf_files
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.cli.main import main
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.files_gguf import GgufFiles
from vadapter.weights.recognise import recognise

Type = gguf.GGMLQuantizationType
FAMILIES = list(gguf_files.ARCHITECTURES)


def opened(path):
    return open_checkpoint(str(path))


def same_parameters(found, wanted):
    found, wanted = trees.flatten(found), trees.flatten(wanted)
    assert found.keys() == wanted.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_of_the_hugging_face_folder(family, tmp_path):
    source = families.opened(gguf_files.config(family), gguf_files.tensors(family))
    wanted_config, wanted, _ = families.load(source)
    checkpoint = opened(gguf_files.write(tmp_path / "model.gguf", family))
    config, params, found = families.load(checkpoint)
    assert checkpoint.kind == "gguf"
    assert found.family == {"gemma3_text": "gemma3", "llama2": "llama", "llama3": "llama"}.get(family, family)
    assert config == wanted_config
    same_parameters(params, wanted)


@pytest.mark.parametrize("family", ["llama2", "mistral", "qwen2", "qwen3", "gemma"])
def test_its_logits_are_those_of_transformers(family, tmp_path):
    config, params, _ = families.load(opened(gguf_files.write(tmp_path / "model.gguf", family)))
    golden = families.outputs(family)
    ours = families.logits(config, params, golden["tokens"], golden["mask"])
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=1e-4)


# ---- files and types


def dequantised(kind):
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("kind", filter(dequantised, Type))
def test_every_type_is_what_the_library_makes_of_it(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng, path = np.random.default_rng(0), tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, rows in (("few", 3), ("many", 40)):
        raw = rng.integers(0, 60, (rows, 2 * size), np.uint8)  # small bytes, so that no scale is infinite
        if kind < 2:
            plain = {Type.F32: np.float32, Type.F16: np.float16}[kind]
            writer.add_tensor(name, rng.standard_normal((rows, 2 * block)).astype(plain))
        else:
            writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = GgufFiles(str(path))
    for tensor in gguf.GGUFReader(path).tensors:
        wanted = gguf.quants.dequantize(tensor.data, kind)
        assert files.infos[tensor.name].shape == wanted.shape
        for start, stop in ((0, None), (1, 2), (2, None)):
            np.testing.assert_array_equal(files.read(tensor.name, start, stop).astype(np.float32), wanted[start:stop])


def test_quantised_queries_and_halves_are_read(tmp_path):
    kinds = {"blk.0.attn_q.weight": Type.Q8_0, "blk.0.ffn_up.weight": Type.BF16, "token_embd.weight": Type.F16}
    tensors = opened(gguf_files.write(tmp_path / "model.gguf", "llama2", kinds=kinds)).tensors
    wanted = gguf_files.tensors("llama2")
    assert tensors.infos["model.layers.0.mlp.up_proj.weight"].dtype == ml_dtypes.bfloat16
    assert tensors.infos["model.embed_tokens.weight"].dtype == np.float16
    for name in ("self_attn.q_proj", "mlp.up_proj"):
        name = f"model.layers.0.{name}.weight"
        np.testing.assert_allclose(tensors.read(name).astype(np.float32), wanted[name], atol=0.02)
        np.testing.assert_array_equal(tensors.read(name, 3, 9), tensors.read(name)[3:9])


@pytest.mark.parametrize("by", ["folder", "first", "last"])
def test_a_model_in_several_files(by, tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama2", split_max_tensors=8)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files[0] == "model-00001-of-00003.gguf" and len(files) == 3
    (tmp_path / "mmproj-model-f16.gguf").write_bytes(b"not looked at")
    source = {"folder": tmp_path, "first": tmp_path / files[0], "last": tmp_path / files[-1]}[by]
    wanted = families.opened(gguf_files.config("llama2"), gguf_files.tensors("llama2"))
    same_parameters(families.load(opened(source))[1], families.load(wanted)[1])


def test_a_missing_split_is_named(tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama2", split_max_tensors=8)
    (tmp_path / "model-00002-of-00003.gguf").unlink()
    with pytest.raises(UserError, match=r"2 of which are there; missing: model-00002-of-00003\.gguf"):
        opened(tmp_path)
    (tmp_path / "model-00001-of-00003.gguf").rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match=r"one of 3 files.*-00001-of-00003\.gguf"):
        opened(tmp_path / "renamed.gguf")


def test_splits_of_two_downloads_are_refused(tmp_path):
    gguf_files.write(tmp_path / "model.gguf", "llama2", split_max_tensors=8)
    shutil.copy(tmp_path / "model-00003-of-00003.gguf", tmp_path / "model-00002-of-00003.gguf")
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf says that it is file 2 of 3 .*expected 1 of 3"):
        opened(tmp_path)


def test_a_folder_with_two_models_is_refused(tmp_path):
    for name in ("model-Q4_0.gguf", "model-Q8_0.gguf"):
        gguf_files.write(tmp_path / name, "llama2")
    with pytest.raises(UserError, match=r"2 GGUF models \(model-Q4_0.gguf, model-Q8_0.gguf\)"):
        opened(tmp_path)


# ---- bad files


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(share, tmp_path):
    path = cut(gguf_files.write(tmp_path / "model.gguf", "llama2"), share)
    with pytest.raises(UserError, match=r"model\.gguf is no complete GGUF file"):
        opened(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n", "a pointer of Git LFS.*git lfs pull"),
        (b"GGUF\x01\0\0\0" + b"\0" * 50, "GGUF of version 1; versions 2 and 3"),
        (b"GGUF\x09\0\0\0" + b"\0" * 50, "GGUF of version 9"),
        (b"GGUF\0\0\0\x03" + b"\0" * 50, "big-endian"),
        (b"tjgg\x01\0\0\0" + b"\0" * 50, "before GGUF"),
        (b"PK\x03\x04" + b"\0" * 50, "is no GGUF file"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "no complete GGUF file"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + b"\x01" + bytes(7) + b"k" + b"\x0d", "no complete GGUF"),
    ],
)
def test_what_is_no_gguf_file_is_said(content, message, tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "model.gguf")
    assert main(["import", f"--source={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_in_big_endian_order_is_named(tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", "llama2", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(UserError, match="big-endian.*expected little-endian"):
        opened(path)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    path, real = gguf_files.write(tmp_path / "model.gguf", "llama2"), builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("gguf"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'vadapter\[gguf\]'"):
        opened(path)


# ---- models that are not read


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("llama2", {"{arch}.expert_count": 8}, r"llama\.expert_count to 8.*expected 0"),
        ("llama2", {"{arch}.logit_scale": 2.0}, r"llama\.logit_scale"),
        ("llama2", {"{arch}.attention.causal": False}, r"attention\.causal"),
        ("llama2", {"{arch}.rope.scaling.type": "longrope"}, r"rope\.scaling\.type and found longrope"),
        ("llama2", {"{arch}.rope.scaling.type": "linear"}, r"rope\.scaling\.factor"),
        ("llama2", {"{arch}.rope.dimension_count": 4}, r"expected 8.*rope\.dimension_count and found 4"),
        ("qwen3", {"{arch}.attention.value_length": 8}, r"attention\.value_length"),
        ("qwen2", {"{arch}.attention.head_count": [4, 4, 2]}, r"the same value for all layers"),
        ("llama2", {"{arch}.block_count": None}, r"llama\.block_count and found nothing"),
        ("llama2", {"{arch}.attention.head_count": 0}, r"attention\.head_count and found 0"),
        ("llama2", {"{arch}.attention.head_count": "4"}, r"a whole number above 0"),
        ("qwen2", {"{arch}.attention.sliding_window": 4}, r"qwen2\.attention\.sliding_window"),
        ("llama3", {"{arch}.rope.scaling.factor": 2.0}, r"expected none, as rope_freqs.*found linear"),
        ("llama3", {"{arch}.rope.freq_base": "1e4"}, r"a number above 0 for llama\.rope\.freq_base and found 1e4"),
        ("llama2", {"general.architecture": ["llama", "qwen2"]}, r"general\.architecture .*llama.*, which is not read"),
        ("llama2", {"{arch}.attention.sliding_window_pattern": 2}, r"sliding_window_pattern to 2"),
        ("llama2", {"{arch}.rope.scaling.attn_factor": 0.5}, r"attn_factor to 0\.5.*expected 1"),
        ("llama2", {"tokenizer.ggml.tokens": [str(i) for i in range(97)]}, "97 tokens.*and 96 rows"),
    ],
)
def test_a_setting_that_is_not_read_is_refused_by_name(family, values, message, tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", family, values=values)
    with pytest.raises(UserError, match=message):
        opened(path)


@pytest.mark.parametrize(("arch", "message"), [("clip", "vision tower.*mmproj"), ("mamba", "'mamba', which is not")])
def test_other_architectures_are_refused_by_name(arch, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(gguf_files.write(tmp_path / "mmproj.gguf", "llama2", arch=arch))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"{arch}.feed_forward_length": 40}, r"mis-shaped.*mlp\.down_proj\.weight"),
        ({"{arch}.block_count": 3}, r"expected 2, .*layers, for llama\.block_count and found 3"),
        ({"{arch}.block_count": 2**32 - 1}, r"expected 2, .*llama\.block_count"),
        ({"{arch}.attention.key_length": 16}, r"mis-shaped.*self_attn\.q_proj"),
    ],
)
def test_metadata_that_contradict_the_tensors_are_refused(values, message, tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", "llama2", values=values)
    with pytest.raises(UserError, match=f"(?s){message}"):
        families.load(opened(path))


def test_a_tensor_without_a_name_of_ours_is_listed(tmp_path):
    path = gguf_files.write(
        tmp_path / "model.gguf", "qwen3", change=lambda x: x.update({"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    )
    with pytest.raises(UserError, match=r"(?s)unused.*blk\.0\.attn_sinks\.weight"):
        families.load(opened(path))


def test_another_stretch_of_the_frequencies_is_refused(tmp_path):
    def doubled(arrays):
        arrays["rope_freqs.weight"][-1] *= 2

    with pytest.raises(UserError, match="in another way than Llama"):
        opened(gguf_files.write(tmp_path / "model.gguf", "llama3", change=doubled))


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    for kind, message in ((Type.I8, "stored as I8, which cannot be dequantised"), (None, "ggml type 77")):
        gguf_files.write(path, "llama2", change=lambda x: x.update({"extra": np.ones((2, 32), np.int8)}))
        if kind is None:
            content = path.read_bytes()
            at = content.index(b"extra") + 5 + 4 + 16
            path.write_bytes(content[:at] + b"\x4d" + content[at + 1 :])
        with pytest.raises(UserError, match=message):
            opened(path)


def test_it_holds_no_encoder(tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", "llama2")
    with pytest.raises(UserError, match=r"no encoder.*decoder \(llama\)"):
        recognise(opened(path), "encoder")


def test_linear_and_yarn_scaling_become_settings(tmp_path):
    values = {"{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0}
    values["{arch}.rope.scaling.original_context_length"] = 32
    path = gguf_files.write(tmp_path / "model.gguf", "qwen3", values=values)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert opened(path).config["rope_scaling"] == scaling
    path = gguf_files.write(tmp_path / "linear.gguf", "llama2", values={"{arch}.rope.scale_linear": 2.0})
    assert recognise(opened(path)).config.rope_scaling.factor == 2.0


# ---- transformers, live


@pytest.mark.parity
@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2"])
def test_transformers_reads_the_same_numbers(family, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    kinds = {
        name: (Type.Q8_0, Type.Q4_1, Type.Q5_0)[i % 3]
        for i, (name, x) in enumerate(gguf_files.stored(family).items())
        if x.ndim == 2 and x.shape[1] % 32 == 0
    }
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(96)]}
    path = gguf_files.write(tmp_path / "model.gguf", family, kinds=kinds, values=tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    theirs = {name: x.numpy() for name, x in model.state_dict().items()}
    tensors = opened(path).tensors
    if "lm_head.weight" not in tensors.infos:
        del theirs["lm_head.weight"]
    assert theirs.keys() == tensors.infos.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(tensors.read(name), x, err_msg=name)
