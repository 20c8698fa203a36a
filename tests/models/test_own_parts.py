"""Configurations that are defined outside of the package: as good as the shipped ones, or refused with a reason."""

import dataclasses
import json
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.models import small
from tests.models.own_parts import AveragePoolConfig, LinearPatchesConfig
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models import configuration
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.configuration import AdapterConfig, adapter, encoder
from vadapter.models.serialization import from_json, to_json
from vadapter.models.stacks import is_stacked, layer_stacks, quantizes, with_stack
from vadapter.models.vlm import VLM
from vadapter.partitioning import MeshConfig, Partitioner, abstract_params, init_params, make_mesh

ONE = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))
MODELS = {
    "adapter": replace(small.vlm(), adapter=AveragePoolConfig()),
    "encoder": replace(small.vlm(), encoder=LinearPatchesConfig()),
    "both": replace(small.vlm(), encoder=LinearPatchesConfig(), adapter=AveragePoolConfig()),
    "front of a tiny LM": replace(small.vlm(), adapter=LMAdapterConfig(small.TINY, AveragePoolConfig(factor=1))),
}


@pytest.fixture
def nothing_is_kept(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(configuration.REGISTRY, "_classes", dict(configuration.REGISTRY._classes))


@pytest.mark.parametrize("name", MODELS)
def test_a_gradient_step_on_own_parts_lowers_the_loss(name):
    config = MODELS[name]
    model, batch = config.make(), small.batch(config, rows=2)
    params = init_params(model, config.example_batch(), jax.random.key(0), ONE)

    @jax.jit
    def step(params):
        def loss(own):
            sums = model.apply({"params": {**params, **own}}, batch, method="loss_sums")
            return sums.loss_sum / sums.weight_sum

        own = {part: params[part] for part in ("encoder", "adapter")}
        value, gradient = jax.value_and_grad(loss)(own)
        size = 0.01 / optax.global_norm(gradient)
        return value, loss(jax.tree.map(lambda x, g: x - size * g, own, gradient)), gradient

    before, after, gradient = step(params)
    assert after < before
    assert all(np.abs(x).max() > 0 for path, x in trees.flatten(gradient).items() if path.endswith("kernel"))


@pytest.mark.parametrize("name", MODELS)
def test_own_parts_go_through_json(name):
    config = MODELS[name]
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config and hash(again) == hash(config)


def test_own_parts_count_their_flops():
    config = MODELS["both"]
    batch = small.batch(config, rows=2)
    abstract = nn.unbox(abstract_params(VLM(config), batch))
    trained = [path for path in trees.flatten(abstract) if path.startswith("adapter/")]
    found = config.flops(abstract, trained)(batch)
    assert found["adapter"] == (2 + 2 + 2) * 24 * 32 * 2  # two images of one token each
    assert found["encoder"] == 2 * (3 * 8 * 8) * 24 * 2 * 4
    inner = MODELS["front of a tiny LM"]
    abstract = nn.unbox(abstract_params(VLM(inner), batch))
    assert inner.flops(abstract, [])(small.batch(inner))["adapter/front"] > 0


def test_an_adapters_parameter_starts_from_what_its_model_computes(tmp_path):
    from vadapter.training.initialize import initial_params
    from vadapter.training.program import Program

    model = replace(MODELS["both"], adapter=AveragePoolConfig(placed=True)).make()
    program = Program(model, partitioner=ONE)
    params, _ = initial_params(program, jax.random.key(0), model_dir=str(tmp_path / "run"), say=lambda line: None)
    grey = np.full((1, 1, 1, 16, 16, 3), 128, np.uint8)
    offset = params["adapter"]["offset"]
    read = lambda m: m.adapter.mapped(m.encode(grey))  # noqa: E731
    np.testing.assert_allclose(offset, model.apply({"params": params}, method=read), rtol=1e-5, atol=1e-6)
    assert np.abs(offset).max() > 0.01


def test_an_adapter_that_makes_other_tokens_than_it_says_is_refused(nothing_is_kept):
    class TooFew(AveragePoolConfig):
        def num_tokens(self, frames, patches):
            return frames * patches

    own = adapter(dataclasses.dataclass(frozen=True)(TooFew))()
    config = replace(MODELS["both"], adapter=own)
    with pytest.raises(UserError, match=r"TooFew: num_tokens .* \(4, 32\), and its module made \(1, 32\)"):
        abstract_params(config.make(), config.example_batch())


def test_own_parts_are_told_in_a_few_words():
    assert configuration.describe(AveragePoolConfig()) == "AveragePool"
    assert configuration.describe(LinearPatchesConfig()) == "LinearPatches (24 wide)"
    assert "AveragePool, then a Decoder (16 wide" in configuration.describe(MODELS["front of a tiny LM"].adapter)


def test_settings_of_layers_are_found_wherever_they_are():
    assert list(layer_stacks(small.vlm("paper"))) == ["encoder", "adapter/lm", "decoder"]
    config = MODELS["front of a tiny LM"]
    changed = with_stack(config, "adapter/lm", remat="full")
    assert layer_stacks(changed)["adapter/lm"].remat == "full"
    assert with_stack(changed, "adapter/lm", remat="none") == config
    assert list(layer_stacks(MODELS["both"])) == ["decoder"]


def test_an_adapter_without_a_method_of_its_kind_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Half:
        def make(self, output_dim, name=None):
            return nn.Dense(output_dim, name=name)

        def flops(self, counter, media, frames, patches):
            return {}

    with pytest.raises(UserError, match=r"Half is registered as an adapter and lacks num_tokens\. .*AdapterConfig"):
        adapter(Half)
    with pytest.raises(UserError, match="lacks image_size, num_patches, width"):
        encoder(Half)


def test_what_a_class_inherits_from_the_protocol_does_not_count():
    @dataclasses.dataclass(frozen=True)
    class Child(AdapterConfig):
        def make(self, output_dim, name=None):
            return nn.Dense(output_dim, name=name)

    with pytest.raises(UserError, match="lacks num_tokens, flops"):
        adapter(Child)


def test_what_can_be_changed_is_no_configuration():
    @dataclasses.dataclass
    class Loose:
        pass

    with pytest.raises(UserError, match="no frozen dataclass"):
        adapter(Loose)


def test_two_modules_cannot_have_one_name(nothing_is_kept):
    class MlpConfig(AveragePoolConfig):
        pass

    with pytest.raises(UserError, match="MlpConfig: vadapter.models.adapters and tests.models.test_own_parts"):
        adapter(dataclasses.dataclass(frozen=True)(MlpConfig))


def test_a_cell_of_a_notebook_may_be_run_twice(nothing_is_kept):
    def cell():
        class Mine(AveragePoolConfig):
            pass

        return adapter(dataclasses.dataclass(frozen=True)(Mine))

    cell()
    second = cell()
    assert type(from_json(to_json(second()))) is second


def test_a_class_that_no_imported_module_defines_is_asked_for():
    record = to_json(MODELS["adapter"])
    record["adapter"]["class"] = "SomebodysConfig"
    with pytest.raises(UserError, match="'SomebodysConfig'.*import the module that defines it.*--module"):
        from_json(record, "model.json")


def test_an_encoder_that_names_its_stack_may_be_kept_in_int8(nothing_is_kept):
    kernel = "encoder/tower/mlp/up/kernel"
    assert not quantizes(kernel) and not is_stacked(kernel)

    class TowerConfig(LinearPatchesConfig):
        stack = "tower"

    encoder(dataclasses.dataclass(frozen=True)(TowerConfig))
    assert quantizes(kernel) and is_stacked(kernel)
    assert not quantizes("encoder/head/kernel")
