"""The same LoRA in peft, live: logits, one step, and what merging makes. Needs torch, transformers and peft."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import families
from vadapter.base import trees
from vadapter.models import lora
from vadapter.models.lora import LoraConfig

pytestmark = pytest.mark.parity
FAMILY = "llama3"
# Our maps by peft's names of them.
MAPS = {
    **{f"self_attn.{name[0]}_proj": f"attention/{name}" for name in ("query", "key", "value", "out")},
    **{f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")},
}
RANK, ALPHA, RATE = 4, 8.0, 0.5


def peft_model(folder, rank_stabilized):
    """A small model with LoRA in peft, of which B is not zero."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    pytest.importorskip("transformers")
    from tests.weights import parity

    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_rslora=rank_stabilized, target_modules=[name.split(".")[1] for name in MAPS]
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(parity.load(FAMILY, families.write_folder(FAMILY, folder)), settings)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_B" in name:
                x.normal_(0, 0.1)
    return torch, model


def ours(model, kernels):
    """LoRA of a model of peft, by our paths and in our shapes."""
    theirs = {name: x.detach().numpy() for name, x in model.named_parameters() if "lora_" in name}
    found = {}
    for name, path in MAPS.items():
        shape = kernels[f"layers/{path}/kernel"].shape[1:]
        inputs = shape[:-1] if path.endswith("out") else shape[:1]
        for part, side in (("A", (*inputs, RANK)), ("B", (RANK, *shape[len(inputs) :]))):
            of_layers = [x for key, x in theirs.items() if f".{name}.lora_{part}." in key]  # in the layers' order
            found[f"layers/{path}/lora_{part.lower()}"] = np.stack([x.T.reshape(side) for x in of_layers])
    return found


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_peft_computes_learns_and_merges_the_same(rank_stabilized, tmp_path):
    torch, model = peft_model(tmp_path, rank_stabilized)
    config, params, _ = families.load(families.opened(families.config(FAMILY), families.tensors(FAMILY)))
    small = LoraConfig(RANK, ALPHA, rank_stabilized)
    config = dataclasses.replace(config, lora=small)
    frozen = trees.flatten(params)
    trained = ours(model, frozen)
    tokens = np.random.default_rng(0).integers(3, 50, (2, 12))

    given = torch.tensor(tokens)
    out = model(input_ids=given, labels=given)

    def loss(trained):
        tree = trees.unflatten({**frozen, **trained})
        logits = families.traced_logits(config, tree, tokens, np.ones_like(tokens))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
        return -picked.mean(), logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-4)

    out.loss.backward()
    torch.optim.SGD([x for x in model.parameters() if x.requires_grad], RATE).step()
    stepped = {path: x - RATE * np.asarray(gradients[path]) for path, x in trained.items()}
    for path, x in ours(model, frozen).items():
        assert np.abs(x - trained[path]).max() > 1e-4, path
        np.testing.assert_allclose(stepped[path], x, atol=1e-5, err_msg=path)

    merged = {name: x.detach().numpy() for name, x in model.merge_and_unload().named_parameters()}
    _, theirs, _ = families.load(families.opened(families.config(FAMILY), merged))
    found = trees.flatten(lora.merge(trees.unflatten({**frozen, **stepped}), small.scale))
    assert np.abs(found["layers/mlp/up/kernel"] - frozen["layers/mlp/up/kernel"]).max() > 1e-2
    for path, x in trees.flatten(theirs).items():
        np.testing.assert_allclose(found[path], x, atol=1e-5, err_msg=path)
