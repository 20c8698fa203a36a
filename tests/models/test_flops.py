import jax
import numpy as np
from flax import linen as nn

from tests.models import small as models
from vadapter.base import trees
from vadapter.models import flops
from vadapter.models.classifier import Classifier, ClassifierConfig
from vadapter.models.vlm import VLM
from vadapter.partitioning import abstract_params


def counted(adapter, trainable, batch=None, **changes):
    config = models.vlm(adapter, **changes)
    batch = batch or models.batch(config, rows=2)
    abstract = nn.unbox(abstract_params(VLM(config), batch))
    trained = [p for p in trees.flatten(abstract) if any(p.startswith(t) for t in trainable)]
    return config.flops(abstract, trained)(batch), trees.flatten(abstract), batch


def test_frozen_parts_cost_less():
    frozen, sizes, batch = counted("mlp", ["adapter/"])
    full, _, _ = counted("mlp", [""])
    patches = 2 * 4  # two rows of one image
    adapter = sum(x.size for p, x in sizes.items() if p.startswith("adapter/") and p.endswith("kernel"))
    # No gradient goes into the frozen encoder: forwards and the gradient of the weights.
    assert frozen["adapter"] == (2 + 2 + 2) * adapter * patches
    attention = 4 * patches * 4 * 32 * 2
    encoder = sum(x.size for p, x in sizes.items() if p.startswith("encoder/") and p.endswith("kernel"))
    assert frozen["encoder"] == 2 * encoder * patches + attention
    assert full["encoder"] == 3 * frozen["encoder"]
    decoder = sum(x.size for p, x in sizes.items() if p.startswith("decoder/layers") and p.endswith("kernel"))
    tokens = batch.tokens.size
    attention = 4 * 2 * batch.tokens.shape[1] ** 2 * 32 * 2 / 2
    head = 64 * 32 * batch.target_ids.size
    assert frozen["decoder"] == 4 * decoder * tokens + 4 * head + 3 * attention
    assert full["decoder"] == 6 * decoder * tokens + 6 * head + 3 * attention


def test_class_token_and_registers_go_through_the_layers():
    plain, _, _ = counted("mlp", ["adapter/"], encoder=models.vit(patch_norm=True))
    counts, sizes, _ = counted("mlp", ["adapter/"], encoder=models.vit(class_token=True, num_registers=3))
    # Four tokens before the four patches: twice the work but for the embedding.
    embedding = 2 * 2 * 4 * sizes["encoder/embedding/kernel"].size
    attention = 4 * 2 * 4 * 4 * 32 * 2
    assert counts["encoder"] - embedding == 2 * (plain["encoder"] - embedding) + 2 * attention


def test_padding_is_not_counted():
    config = models.vlm("perceiver")
    batch = models.batch(config, rows=2)
    half = batch.replace(target_weights=batch.target_weights * np.array([[1.0], [0.0]]))
    whole, _, _ = counted("perceiver", ["adapter/"], batch)
    counts, _, _ = counted("perceiver", ["adapter/"], half)
    assert {part: 2 * n for part, n in counts.items()} == whole
    assert flops.count(half).examples == 1
    assert flops.count(half).tokens == batch.tokens.shape[1]


def test_every_adapter_is_counted():
    for adapter in models.ADAPTERS:
        parts, _, _ = counted(adapter, ["adapter/"])
        assert all(n > 0 for n in parts.values()), adapter
    parts, _, _ = counted("queries", ["adapter/queries"])
    trained, _, _ = counted("queries", ["adapter/"])
    # Only the queries learn: nothing flows back through the front.
    assert parts["adapter/front"] * 3 == trained["adapter/front"]
    assert parts["adapter/lm"] < trained["adapter/lm"]


def test_forward_count_is_the_compilers():
    config = models.vlm("mlp", decoder=models.decoder(depth=1), encoder=models.vit(depth=1))
    batch = models.batch(config, rows=2)
    abstract = nn.unbox(abstract_params(VLM(config), batch))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    forward = jax.jit(lambda p: VLM(config).apply({"params": p}, batch)).lower(params).compile()
    parts = config.flops(abstract, [])(batch)
    head = 2 * 64 * 32 * batch.target_ids.size
    masked = 4 * 2 * batch.tokens.shape[1] ** 2 * 32 / 2  # the compiler counts what the causal mask hides
    counted_by_compiler = forward.cost_analysis()["flops"]
    assert 0.8 < (sum(parts.values()) - head + masked) / counted_by_compiler < 1.0


def test_classifier():
    config = ClassifierConfig(models.vit(), (3, 5))
    from vadapter.base.batch import LabelledImages

    batch = LabelledImages(np.zeros((4, 16, 16, 3), np.uint8), np.zeros((4, 2), np.int32), np.array([1, 1, 0, 1.0]))
    abstract = nn.unbox(abstract_params(Classifier(config), batch))
    parts = config.flops(abstract, list(trees.flatten(abstract)))(batch)
    assert parts["head"] == 6 * 32 * 8 * 3
    assert flops.count(batch) == flops.Counts(3, 0)


def test_peaks():
    assert flops.peak_flops("TPU v5 lite") == 197e12
    assert flops.peak_flops("TPU v5p") == 459e12
    assert flops.peak_flops("NVIDIA H200") == 989e12
    assert flops.peak_flops("cpu") is None
