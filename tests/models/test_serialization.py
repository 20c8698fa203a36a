import dataclasses
import json

import pytest

from tests.models import small
from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.models.classifier import ClassifierConfig
from vadapter.models.serialization import from_json, to_json
from vadapter.models.vlm import VLMConfig

CONFIGS = {
    **{name: small.vlm(name, num_frames=2) for name in small.ADAPTERS},
    "language model": VLMConfig(decoder=small.decoder()),
    "classifier": ClassifierConfig(small.vit(), (3, 4), cells=2),
    **{name: VLMConfig(variants.decoder(name)) for name in variants.DECODERS},
    **{name: small.vlm("mlp", encoder=variants.encoder(name)) for name in variants.ENCODERS},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_come_back_equal(name):
    config = CONFIGS[name]
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert type(again) is type(config)


def test_fields_that_an_older_version_did_not_have_take_their_default():
    record = to_json(small.vlm())
    del record["repeat_stills"], record["decoder"]["remat"]
    assert from_json(record) == small.vlm()


def test_defaults_are_written():
    record = to_json(small.vlm("paper"))
    assert record["adapter"]["front"].keys() == {"class"} | {f.name for f in dataclasses.fields(small.perceiver())}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update({"class": "Path"}), "class 'Path'; known are .*VLMConfig.*--module"),
        (lambda r: r.pop("class"), "class None"),
        (lambda r: r["decoder"].update(experts=8), "has experts in its DecoderConfig.*newer version"),
        (lambda r: r["encoder"].pop("width"), "lacks width in its ViTConfig"),
        (lambda r: r["encoder"].update(patch_size=7), "no multiple of patch_size"),
        (lambda r: r.update(adapter={"class": "QFormerConfig"}), "QFormerConfig"),
    ],
)
def test_what_is_not_known_is_refused(change, words):
    record = to_json(small.vlm())
    change(record)
    with pytest.raises(UserError, match=words):
        from_json(record, "bundle.json")


def test_only_models_are_written():
    with pytest.raises(TypeError):
        to_json(object())
