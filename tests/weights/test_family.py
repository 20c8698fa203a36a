"""A family is one record, also in a module outside the package; a bad record is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import saved
from tests.models import small
from tests.weights import families, own_family
from tests.weights.arrays import assert_same, opened, random_params
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.data.rows import formats
from vadapter.weights import family as registry
from vadapter.weights.family import Family, ModelType, TensorNames, register
from vadapter.weights.importer import import_weights
from vadapter.weights.mapping import Rule
from vadapter.weights.recognise import recognise

SETTINGS = {"model_type": "nano", "n_embd": 32, "n_head": 4, "n_layer": 3, "n_vocab": 96}
CONFIG = small.decoder(
    vocab_size=96, width=32, depth=3, num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=128, activation="relu",
    gated=False, dtype="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch):
    registry.families()
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))


def nano_tensors(params):
    """Our parameters under the names of `own_family.DECODER`."""
    arrays = {"net.wte.weight": params["embedder/embedding"], "net.ln_f.weight": params["final_norm/scale"]}
    for i in range(CONFIG.depth):
        of = {path.removeprefix("layers/"): x[i] for path, x in params.items() if path.startswith("layers/")}
        joined = [of[f"attention/{name}/kernel"].reshape(32, 32).T for name in ("query", "key", "value")]
        layer = {
            "attn.qkv.weight": np.concatenate(joined),
            "attn.proj.weight": of["attention/out/kernel"].reshape(32, 32).T,
            "attn.mask": np.tri(4),
            "ln_1.weight": of["pre_attention_norm/scale"],
            "ln_2.weight": of["pre_mlp_norm/scale"],
            "mlp.up.weight": of["mlp/up/kernel"].T,
            "mlp.down.weight": of["mlp/down/kernel"].T,
        }
        arrays |= {f"net.h.{i}.{name}": x for name, x in layer.items()}
    return {name: np.ascontiguousarray(x) for name, x in arrays.items()}


def write(folder, arrays, settings=None):
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors")
    if settings:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_a_decoder_of_a_user_computes_what_its_weights_say(tmp_path):
    params = random_params(CONFIG)
    source = write(tmp_path / "nano", nano_tensors(params), SETTINGS)
    done = import_weights(source, tmp_path / "out", dtype="f32")
    assert (done.family, done.part, done.prompt_format) == ("nano", "decoder", "gemma")
    assert dataclasses.replace(done.config, dtype="float32") == CONFIG
    found = trees.unflatten(saved.load_params(str(tmp_path / "out")))["decoder"]
    tokens = np.random.default_rng(0).integers(0, 96, (2, 7)).astype(np.int32)
    ours = families.logits(CONFIG, found, tokens, np.ones_like(tokens))
    theirs = families.logits(CONFIG, trees.unflatten(params), tokens, np.ones_like(tokens))
    np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(ours) > 1


def test_an_encoder_of_a_user_is_recognised_by_a_tensor(tmp_path):
    params = random_params(small.vit())
    arrays = {"nano_vit." + path.replace("/", "."): x for path, x in params.items()}
    done = import_weights(write(tmp_path / "nano", arrays), tmp_path / "out", dtype="f32")
    assert (done.family, done.part, done.config) == ("nano_vit", "encoder", small.vit())
    found = saved.load_params(str(tmp_path / "out"))
    assert_same({path.removeprefix("encoder/"): x for path, x in found.items()}, params)


def test_a_setting_that_a_family_refuses_is_explained():
    source = families.opened({**SETTINGS, "dropout": 0.1}, nano_tensors(random_params(CONFIG)))
    with pytest.raises(UserError, match="sets dropout to 0.1"):
        recognise(source)


def test_a_name_that_is_taken_is_refused_and_both_modules_are_named():
    before = registry.families()
    for again in (
        dataclasses.replace(own_family.DECODER, by=ModelType(("other",))),
        dataclasses.replace(own_family.DECODER, name="other"),
    ):
        with pytest.raises(UserError, match=r"in tests\.weights\.own_family and .* in tests\.weights\.test_family"):
            register(again)
    with pytest.raises(UserError, match=r"'llama' in vadapter\.weights\.families\.llama"):
        register(dataclasses.replace(own_family.DECODER, name="llama"))
    assert registry.families() == before


def test_a_cell_of_a_notebook_may_be_run_again():
    cell = {"__name__": "__main__", "register": register, "dataclasses": dataclasses, "mine": own_family.ENCODER}
    for description in ("first", "second"):
        by = TensorNames({"huggingface": re.compile("(x)")}, description)
        exec("register(dataclasses.replace(mine, name='cell', by=by))", {**cell, "by": by})
    assert [f.by.description for f in registry.families() if f.name == "cell"] == ["second"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"part": "vision"}, "'encoder' or 'decoder'; found 'vision'"),
        ({"by": "nano"}, "`by` to be a ModelType or TensorNames.*found 'nano'"),
        ({"config": SETTINGS}, "`config` to be a function"),
        ({"rules": []}, r"`rules` to be a function; found \[\]"),
        ({"ignored": ["x"]}, "`ignored` to be a function"),
    ],
)
def test_a_family_without_what_it_needs_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(own_family.DECODER, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": lambda place: SETTINGS}, "'own': `config` returned dict.*DecoderConfig"),
        ({"config": lambda place: small.vit()}, "'own': `config` returned ViTConfig.*DecoderConfig"),
        ({"rules": lambda place, config: [("a", "b")]}, r"'own': `rules` returned \('a', 'b'\)"),
    ],
)
def test_what_a_family_returns_is_checked(change, message):
    own = dataclasses.replace(own_family.DECODER, name="own", by=ModelType(("own",), ("wte.weight",)), **change)
    register(own)
    with pytest.raises(UserError, match=message):
        recognise(families.opened({**SETTINGS, "model_type": "own"}, nano_tensors(random_params(CONFIG))))


def test_only_a_family_can_be_registered():
    with pytest.raises(UserError, match="expected a Family; found 'nano'"):
        register("nano")


def test_a_checkpoint_that_two_families_recognise_is_refused():
    own = TensorNames({"big_vision": re.compile(r"()embedding/kernel")}, "mine")
    register(Family("mine", "encoder", own, lambda place: small.vit(), lambda place, config: [Rule("cls", "cls")]))
    with pytest.raises(UserError, match=r"more than once: encoder \(vit\) and encoder \(mine\)"):
        recognise(opened("big_vision", random_params(small.vit())))


def test_the_chats_of_families_are_formats():
    assert {family.prompt_format for family in registry.families()} - {None} <= formats.FORMATS.keys()
