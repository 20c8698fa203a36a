import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from tests import saved
from tests.models import small as models
from tests.training import small
from vadapter.base import fingerprints, trees
from vadapter.base.errors import UserError
from vadapter.models.classifier import Classifier, ClassifierConfig
from vadapter.training import checkpoints, initialize, sources
from vadapter.training.program import Program
from vadapter.training.sources import Source
from vadapter.training.storage import Storage

STAGE1_RULES = (("encoder/.*", r"\g<0>"), ("decoder/(.*)", r"adapter/lm/\1"))


def shapes(model=None, example=None):
    return trees.flatten(nn.unbox(small.boxed(model, example)))


def start(model_dir, given, trainable=("adapter/front/.*", "head/.*"), placed=None, said=None, **more):
    program = small.program(placed=placed, trainable=trainable, **more)
    say = (said if said is not None else []).append
    return initialize.initial_params(program, jax.random.key(0), sources=given, model_dir=str(model_dir), say=say)


def write(folder, tree, step=0):
    saved.save_params(str(folder), tree, step=step)
    return {p: np.asarray(x) for p, x in trees.flatten(tree).items()}


def write_imported(folder, tree):
    """A checkpoint with a folder for each array, and their hashes beside it."""
    import orbax.checkpoint as ocp

    handlers = {"params": ocp.PyTreeCheckpointHandler(use_ocdbt=False), "run": ocp.JsonCheckpointHandler()}
    run = {"format": checkpoints.FORMAT, "step": 0, "sources": []}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    with ocp.CheckpointManager(str(folder), options=options, item_handlers=handlers) as manager:
        manager.save(0, args=ocp.args.Composite(params=ocp.args.PyTreeSave(tree), run=ocp.args.JsonSave(run)))
    hashes = {p: fingerprints.of_array(np.asarray(x)) for p, x in trees.flatten(tree).items()}
    fingerprints.save(str(folder), 0, hashes)
    return hashes


def test_arrays_come_sharded_as_asked_under_their_new_names(tmp_path):
    placed = small.partitioner(data=2, fsdp=2, tensor=2)
    given = write(tmp_path / "stage1", small.params(small.Model(stage=1), seed=1))
    large = write(tmp_path / "large", {"decoder": small.params(seed=2)["decoder"]})
    both = [Source(str(tmp_path / "stage1"), STAGE1_RULES), Source(str(tmp_path / "large"))]
    params, _ = start(tmp_path / "run", both, trainable=("adapter/.*", "head/.*"), placed=placed)
    found, shardings = trees.flatten(params), trees.flatten(placed.param_shardings(small.boxed()))
    assert {p: x.sharding for p, x in found.items()} == shardings
    assert found["adapter/lm/kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    np.testing.assert_array_equal(found["adapter/lm/kernel"], given["decoder/kernel"])
    np.testing.assert_array_equal(found["encoder/kernel"], given["encoder/kernel"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(found["decoder/kernel"], large["decoder/kernel"].astype(jnp.bfloat16))


def test_a_parameter_that_is_not_taken_is_never_read(tmp_path):
    tree = {"encoder": small.params(seed=1)["encoder"], "decoder": {"table": jnp.ones((64, 64))}}
    write_imported(tmp_path / "imported", tree)
    chunks = tmp_path / "imported/checkpoint_0/params/decoder.table"
    data = [file for file in os.listdir(chunks) if not file.startswith(".z")]
    assert data
    for file in data:
        os.remove(chunks / file)
    source = Source(str(tmp_path / "imported"), (("(encoder/.*)", r"\1"),))
    params, _ = start(tmp_path / "run", [source], trainable=("(adapter|decoder|head)/.*",))
    np.testing.assert_array_equal(params["encoder"]["bias"], tree["encoder"]["bias"])


def test_only_the_bytes_of_what_is_taken_are_read(tmp_path):
    import tensorstore

    def bytes_read():
        metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(value.get("value", 0) for metric in metrics for value in metric["values"])

    table = np.random.default_rng(0).normal(size=(1024, 256)).astype(np.float32)
    write(tmp_path / "a", {"encoder": small.params(seed=1)["encoder"], "decoder": {"table": table}})
    before = bytes_read()
    source = Source(str(tmp_path / "a"), (("(encoder/.*)", r"\1"),))
    start(tmp_path / "run", [source], trainable=("(adapter|decoder|head)/.*",))
    assert 0 < bytes_read() - before < table.nbytes / 10


def test_recorded_hashes_are_not_computed_again(tmp_path, monkeypatch):
    tree = {"encoder": small.params(seed=1)["encoder"]}
    hashes = write_imported(tmp_path / "imported", tree)
    write(tmp_path / "trained", tree)
    imported, trained = (sources.look(Source(str(tmp_path / name)), shapes()) for name in ("imported", "trained"))
    expected = fingerprints.combine(hashes)
    assert trained.sha256() == expected
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "of_array", lambda array: pytest.fail("read to be hashed"))
        assert imported.sha256() == expected
    # Hashes of other arrays than are there do not count.
    wrong = {p: dataclasses.replace(h, shape=(1, *h.shape), sha256="0") for p, h in hashes.items()}
    fingerprints.save(str(tmp_path / "imported"), 0, wrong)
    assert imported.sha256() == expected


def test_the_hash_is_of_what_was_taken_under_its_new_names_as_stored(tmp_path):
    tree = small.params(small.Model(stage=1), seed=1)
    write(tmp_path / "stage1", tree)

    def sha256(rules):
        return sources.look(Source(str(tmp_path / "stage1"), rules), shapes()).sha256()

    kernel = fingerprints.of_array(np.asarray(tree["decoder"]["kernel"]))
    assert sha256((("decoder/kernel", "adapter/lm/kernel"),)) == fingerprints.combine({"adapter/lm/kernel": kernel})
    assert sha256((("decoder/kernel", "decoder/kernel"),)) == fingerprints.combine({"decoder/kernel": kernel})


def test_what_is_taken_and_what_is_left_is_said(tmp_path):
    said = []
    tree = small.params(small.Model(stage=1), seed=1)
    tree["decoder"]["embedder"] = {"embedding": jnp.ones((4, 8))}
    write(tmp_path / "stage1", tree, step=7)
    write(tmp_path / "large", {"decoder": small.params(seed=2)["decoder"]})
    rules = (("encoder/.*", r"\g<0>"), (r"decoder/((?!embedder/).*)", r"adapter/lm/\1"))
    start(tmp_path / "run", [Source(str(tmp_path / "stage1"), rules), Source(str(tmp_path / "large"))], said=said)
    assert said == [
        f"{tmp_path}/stage1 checkpoint_7: took 4 parameters (512 B) for adapter/lm, encoder; left 3: decoder/embedder, "
        "head (vocabulary tables of the tiny LM do not carry over: the adapter reads no text)",
        f"{tmp_path}/large checkpoint_0: took 2 parameters (288 B) for decoder",
    ]


@pytest.mark.parametrize("class_token", [False, True])
def test_position_embeddings_of_another_image_size_are_resampled(tmp_path, class_token):
    config = ClassifierConfig(models.vit(image_size=32, class_token=class_token), (2,))
    model = Classifier(config)
    boxed = small.boxed(model, images(32))
    placed = small.partitioner(fsdp=2)
    rng = np.random.default_rng(0)
    values = {p: rng.normal(size=x.shape).astype(np.float32) for p, x in shapes(model, images(32)).items()}
    values["encoder/pos_embedding"] = rng.normal(size=(1, 4 + class_token, 32)).astype(np.float32)
    write(tmp_path / "small", trees.unflatten(values))
    offer = sources.look(Source(str(tmp_path / "small")), shapes(model, images(32)))
    assert "encoder/pos_embedding resampled from 2 x 2 to 4 x 4 patches" in offer.summary()
    reference = offer.reference(str(tmp_path / "small"), list(values))
    params = initialize.assemble({}, [reference], boxed, Storage.of(boxed, placed, (), "float32"), "The run")
    found = np.asarray(params["encoder"]["pos_embedding"])
    stored = values["encoder/pos_embedding"]
    assert found.shape == (1, 16 + class_token, 32)
    corners = [found[0, class_token + i] for i in (0, 3, 12, 15)]
    np.testing.assert_allclose(corners, stored[0, class_token:], rtol=1e-5)
    if class_token:
        np.testing.assert_array_equal(found[0, 0], stored[0, 0])


@pytest.mark.parametrize("grid", [2, 3])
def test_a_table_that_the_encoder_resamples_itself_comes_as_it_was_trained(tmp_path, grid):
    config = ClassifierConfig(models.vit(image_size=32, position_grid=grid), (2,))
    program = Program(Classifier(config), images(32))
    values = {p: np.ones(x.shape, np.float32) for p, x in program.shapes.items()}
    values["encoder/pos_embedding"] = np.random.default_rng(0).normal(size=(1, 4, 32)).astype(np.float32)
    write(tmp_path / "weights", trees.unflatten(values))

    def params():
        sources = [Source(str(tmp_path / "weights"))]
        key = jax.random.key(0)
        return initialize.initial_params(program, key, sources=sources, model_dir=str(tmp_path), say=print)[0]

    if grid == 2:
        np.testing.assert_array_equal(params()["encoder"]["pos_embedding"], values["encoder/pos_embedding"])
    else:
        with pytest.raises(UserError, match=r"positions of 2 x 2 .*position_grid is 3\. Set position_grid to 2"):
            params()


def images(size):
    from vadapter.base.batch import LabelledImages

    return LabelledImages(np.zeros((2, size, size, 3), np.uint8), np.zeros((2, 1), np.int32), np.ones(2, np.float32))


def test_position_embeddings_that_are_no_grid_are_refused(tmp_path):
    write(tmp_path / "a", {"encoder": {"pos_embedding": jnp.ones((1, 5, 8))}})
    model = {"encoder/pos_embedding": jax.ShapeDtypeStruct((1, 16, 8), jnp.float32)}
    with pytest.raises(UserError, match=r"the shape \(1, 5, 8\); the model expects \(1, 16, 8\)"):
        sources.look(Source(str(tmp_path / "a")), model)


def test_assemble_lays_given_arrays_over_the_references(tmp_path):
    given = write(tmp_path / "stage1", small.params(small.Model(stage=1), seed=1))
    _, references = start(tmp_path / "run", [Source(str(tmp_path / "stage1"))], trainable=("(adapter|head)/.*",))
    shutil.move(tmp_path / "stage1", tmp_path / "elsewhere")
    trained = {part: small.params(seed=3)[part] for part in ("adapter", "head")}
    own = {p: np.asarray(x) for p, x in trees.flatten(trained).items()}
    placed = small.partitioner(fsdp=2)

    def assemble(own, untrained=()):
        moved = [dataclasses.replace(r, path=str(tmp_path / "elsewhere")) for r in references]
        storage = Storage.of(small.boxed(), placed, own.keys() - set(untrained))
        return initialize.assemble(own, moved, small.boxed(), storage, "The bundle b")

    found = trees.flatten(assemble(own))
    for path, x in own.items():
        np.testing.assert_array_equal(found[path], x)
        assert found[path].sharding.mesh == placed.mesh
    assert (found["encoder/kernel"].dtype, found["head/kernel"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(found["encoder/kernel"], given["encoder/kernel"].astype(jnp.bfloat16))
    assert assemble(own, untrained=["head/kernel"])["head"]["kernel"].dtype == jnp.bfloat16
    with pytest.raises(UserError, match="The bundle b gives head/bias with the shape"):
        assemble({**own, "head/bias": np.zeros(9, np.float32)})
    shutil.rmtree(tmp_path / "elsewhere")
    write(tmp_path / "elsewhere", small.params(small.Model(stage=1), seed=9))
    with pytest.raises(UserError, match="The bundle b was trained with weights whose sha256 is .* gives"):
        assemble(own)
