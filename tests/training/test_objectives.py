import jax
import numpy as np
import pytest

from tests.models import small as models
from tests.training import small
from vadapter.base import trees
from vadapter.base.batch import LabelledImages
from vadapter.models.classifier import Classifier, ClassifierConfig
from vadapter.models.losses import ObjectiveConfig
from vadapter.models.vlm import VLM
from vadapter.training import freezing
from vadapter.training.objectives import make_objective
from vadapter.training.step import loss_and_gradients


def gradients(placed, accumulate=1, **settings):
    """Loss and gradients of a small VLM's adapter, all else frozen."""
    config = models.vlm("queries", decoder=models.decoder(depth=1), encoder=models.vit(depth=1))
    model, batch = VLM(config), models.batch(config, rows=8)
    weights = np.array(batch.target_weights)
    weights[:, -1] = [0, 1, 0, 2, 1, 0, 1, 1]
    batch = batch.replace(target_weights=weights)
    trained, frozen = freezing.partition(small.params(model, placed, example=batch), ["adapter/.*"])
    objective = make_objective(model, ObjectiveConfig(**settings))

    def compute(trained, frozen, batch):
        return loss_and_gradients(objective, trained, frozen, batch, accumulate)

    with placed.activate():
        return jax.jit(compute)(trained, frozen, placed.put_batch(batch))


@pytest.fixture(scope="module")
def alone():
    return gradients(small.partitioner(), z_loss=1e-3)


def assert_close(found, expected):
    found, expected = freezing.named_leaves(found), freezing.named_leaves(expected)
    assert found.keys() == expected.keys()
    for path in found:
        scale = max(1e-3, float(np.abs(np.asarray(expected[path])).max()))
        np.testing.assert_allclose(
            np.asarray(found[path]), np.asarray(expected[path]), 1e-5, 1e-5 * scale, err_msg=path
        )


def test_vlm_sharded_over_eight_devices_in_parts_and_chunks_is_one_device(alone):
    sharded = gradients(small.partitioner(data=2, fsdp=2, tensor=2), accumulate=2, z_loss=1e-3, vocab_chunk=24)
    assert_close(sharded, alone)


def test_only_the_adapter_has_gradients(alone):
    sums, grads = alone
    assert {p.split("/")[0] for p in trees.flatten(grads)} == {"adapter"}
    assert all(np.abs(np.asarray(x)).max() > 0 for x in trees.flatten(grads).values())
    # Random logits of unit scale: a loss near that of a uniform guess among 64.
    assert abs(float(sums.loss_sum / sums.weight_sum) - np.log(64)) < 1.5


def test_classifier():
    model = Classifier(ClassifierConfig(models.vit(), (3, 5)))
    rng = np.random.default_rng(0)
    media = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    batch = LabelledImages(media, np.array([[0, 4], [1, -1], [2, 0], [-1, -1]], np.int32), np.ones(4, np.float32))
    params = small.params(model, example=batch)
    sums = make_objective(model)(params, batch)
    assert sums.weight_sum == 5
    assert 0.5 < sums.loss_sum / sums.weight_sum < 3
