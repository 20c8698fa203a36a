"""Every shipped experiment resolves, and its training step has shapes that fit."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import pytest
from flax import linen as nn

from tests.data.tokenizer_files import write_tokenizer
from vadapter.base import resources, trees
from vadapter.base.errors import UserError
from vadapter.data.rows.vocabulary import load_vocabulary
from vadapter.models import variants
from vadapter.models.adapters import MlpConfig
from vadapter.models.vlm import VLMConfig
from vadapter.models.words import WordQuantizationConfig
from vadapter.partitioning import Partitioner, abstract_params
from vadapter.planning.topologies import TPU_TYPES
from vadapter.recipes import experiments, gin_text
from vadapter.recipes.gin_front import parse_gin
from vadapter.runs import experiment
from vadapter.training import freezing, sources

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted(path.name for path in (resources.folder("gin") / "experiments").glob("*.gin"))
PAIRS = ("siglip2_gemma3", "siglip_qwen3", "clip_llama3")
SAMPLE = resources.folder("data") / "samples" / "captions.jsonl"
MESHES = sorted(path.name for path in (resources.folder("gin") / "meshes").glob("*.gin"))
SMALL_WORLD = ["train=8", "validation=8", "test=8", "video_train=8", "video_eval=8", "text_train=8", "text_eval=8"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder for the scenes, and folders of language models with a tokeniser, and of an encoder, as imported."""
    folder = tmp_path_factory.mktemp("data")
    for name, variant in (("tiny", "qwen3_0.6b"), ("large", "gemma3_1b")):
        write_tokenizer(folder / name / "tokenizer", "gemma")
        for file, content in gin_text.gin_files(variants.decoder(variant), str(folder / name), "").items():
            (folder / name / file).write_text(content)
    (folder / "encoder").mkdir()
    (content,) = gin_text.gin_files(variants.encoder("dinov2_s"), str(folder / "encoder"), "").values()
    (folder / "encoder" / "encoder.gin").write_text(content)
    return folder


def boxed(config: experiment.Experiment):
    """Abstract parameters of an experiment's model, whatever devices it is for."""
    return abstract_params(config.model.make(), config.model.example_batch())


def resolve(name: str, data_dir: Path, more: Sequence[str] = (), **macros) -> experiment.Experiment:
    """The experiment of a shipped file, after `+` those of a models file, as its header says to launch it."""
    name, _, pair = name.partition("+")
    folder = resources.folder("gin")
    text = (folder / (f"models/{pair}" if pair else f"experiments/{name}")).read_text()
    if pair:  # its header has the commands of both stages
        text = text.partition("open_stage1.gin")[2].partition("vadapter train")[2 if "stage2" in name else 0]
    values = {"MODEL_DIR": "run", "DATA_DIR": str(data_dir), "TRAIN_JSONL": str(SAMPLE)}
    values["STAGE1_RUN"] = str(data_dir / "tiny")  # which has a tokeniser and is asked by the usual prompt, like a run
    values |= {f"{part.upper()}_WEIGHTS": str(data_dir / part) for part in ("encoder", "tiny", "large")}
    values |= {f"{kind}_FILES": str(SAMPLE) for kind in ("IMAGE", "VIDEO", "CLIP")}
    values |= {"VOCABULARY": str(data_dir / "tiny")}
    bindings = [f"{macro}={value!r}" for macro, value in values.items() if f"--gin.{macro}=" in text]
    imported = [data_dir / part / f"{part}.gin" for part in ("encoder", "tiny", "large") if f"/{part}.gin" in text]
    experiments.register()
    bindings += [f"{macro}={value!r}" for macro, value in ({"BATCH_SIZE": 8} | macros).items()]
    world = [f"ScenesConfig.{field}" for field in SMALL_WORLD] if "DATA_DIR" in text else ["jsonl_task.holdout=0.5"]
    world += ["pairs_task.max_bad_share=1.0"] if "IMAGE_FILES" in text else []
    models = [f"models/{pair}"] if pair else []
    parse_gin([f"experiments/{name}", *models, *map(str, imported), *more], [*bindings, *world])
    return experiments.made()


@pytest.mark.parametrize("name", [*EXPERIMENTS, *(f"open_stage{s}.gin+{pair}.gin" for s in "12" for pair in PAIRS)])
def test_experiment_resolves_and_its_step_has_shapes(name, data_dir):
    config = resolve(name, data_dir)
    parts = experiment.Parts(config)
    abstract = nn.unbox(boxed(config))
    trainable, frozen = freezing.partition(abstract, config.train.trainable)

    def step(trainable, frozen, batch):
        return jax.grad(lambda t: parts.objective(trees.merge(t, frozen), batch).loss_sum)(trainable)

    gradients = jax.eval_shape(step, trainable, frozen, parts.example)
    assert trees.flatten(gradients).keys() == trees.flatten(trainable).keys()
    sources = [rule for source in config.sources for rule in source.rules]
    assert bool(sources) == bool(trees.flatten(frozen))


@pytest.mark.parametrize(
    ("stage1", "stage2"),
    [
        ("scenes_stage1.gin", "scenes_queries.gin"),
        ("scenes_stage1.gin", "scenes_paper.gin"),
        ("own_stage1.gin", "own_stage2.gin"),
        ("paper_stage1.gin", "paper_stage2.gin"),
        ("open_stage1.gin", "open_stage2.gin"),
        *((f"open_stage1.gin+{pair}.gin", f"open_stage2.gin+{pair}.gin") for pair in PAIRS),
    ],
)
def test_what_stage_1_hands_over_fits_stage_2(stage1, stage2, data_dir):
    given = trees.flatten(nn.unbox(boxed(resolve(stage1, data_dir))))
    config = resolve(stage2, data_dir)
    wanted = trees.flatten(nn.unbox(boxed(config)))
    taken = sources.rename(given, config.sources[-1].rules, "stage 1")
    assert {path: x.shape for path, x in taken.items()} == {path: wanted[path].shape for path in taken}
    assert {p for p in wanted if p.startswith("adapter/lm/")} <= taken.keys()


@pytest.mark.parametrize("name", ["scenes_queries.gin", "scenes_paper.gin", "open_stage2.gin", "paper_stage2.gin"])
def test_the_hand_off_is_a_file_more(name, data_dir):
    stage1 = str(data_dir / "tiny")  # which has a tokeniser and is asked by the usual prompt, like a run
    config = resolve(name, data_dir, ["runs/handoff.gin"], STAGE1_RUN=stage1)
    assert config.handoff is not None and config.handoff.source == stage1
    before = load_vocabulary(stage1).head("Describe the following:")
    assert config.model.adapter.num_prefix == 1 + len(before) > 1
    given = resolve(name, data_dir, ["runs/handoff.gin"], NUM_PREFIX=3)
    assert given.model.adapter.num_prefix == 3
    with pytest.raises(UserError, match="NUM_(PREFIX|SUFFIX) can give it"):
        resolve(name, data_dir, ["runs/handoff.gin"], STAGE1_RUN="nowhere")


@pytest.mark.parametrize("adapter", ["", "words", "queries"])
def test_the_tiny_lm_writes_words_frozen_trained_or_not_at_all(adapter, data_dir):
    stage1 = str(data_dir / "tiny")
    more = [f"models/adapters/{adapter}.gin", "runs/handoff.gin"] if adapter else []
    config = resolve("open_stage2.gin", data_dir, more, STAGE1_RUN=stage1)
    words, after = (0, 0) if adapter == "queries" else (16, len(load_vocabulary(stage1).tail(" :")))
    assert (config.model.adapter.num_words, config.model.adapter.num_suffix) == (words, after)
    trained, frozen = freezing.partition(nn.unbox(boxed(config)), config.train.trainable)
    parts = {path.split("/")[2] for path in trees.flatten(trained) if path.startswith("adapter/lm/")}
    assert parts == ({"layers", "final_norm"} if adapter else set())
    assert ("adapter/lm/embedder/embedding" in trees.flatten(frozen)) == bool(words)


@pytest.mark.parametrize("name", ["open_stage2.gin", "own_stage2.gin"])
def test_the_tiny_lm_keeps_its_loss_by_one_more_file(name, data_dir):
    config = resolve(name, data_dir, ["models/adapters/words_supervised.gin"], STAGE1_RUN=str(data_dir / "tiny"))
    assert (config.objective.tiny_loss, config.tiny_lm) == (1.0, str(data_dir / "tiny"))
    parts = experiment.Parts(config)
    assert {"layers", "final_norm", "embedder"} <= {path.split("/")[2] for path in parts.trained if "/lm/" in path}
    front = parts.example.tiny.tokens.shape[1] - sum(config.data.lengths.values())
    assert front == config.model.encoder.num_patches


@pytest.mark.parametrize("adapter", ["mlp", "pixel_shuffle"])
def test_other_adapters_go_over_an_experiment(adapter, data_dir):
    config = resolve("open_perceiver.gin", data_dir, [f"models/adapters/{adapter}.gin"], **{"encoder.image_size": 504})
    assert isinstance(config.model.adapter, MlpConfig)
    assert config.model.num_visual_tokens(1) == {"mlp": 36 * 36, "pixel_shuffle": 18 * 18}[adapter]


def test_soft_tokens_become_words_by_one_more_file(data_dir):
    config = resolve("open_perceiver.gin", data_dir, ["models/quantization/gumbel.gin"], TRAIN_STEPS=700)
    assert config.model.quantization == WordQuantizationConfig("gumbel", 2.0, end_temperature=0.5, decay_steps=700)


def test_the_paper_scale_recipe_is_the_paper_s(data_dir):
    config = resolve("paper_stage2.gin", data_dir)
    assert isinstance(config.model, VLMConfig)
    assert config.model.num_visual_tokens(1) == config.model.num_visual_tokens(8) == 256
    shapes = trees.flatten(nn.unbox(boxed(config)))
    count = {
        part: sum(x.size for p, x in shapes.items() if p.startswith(part)) for part in ("adapter", "encoder", "decoder")
    }
    assert 115e6 < count["adapter"] < 145e6  # the paper trains 130M
    assert 0.9e9 < count["encoder"] < 1.1e9
    assert 9.2e9 < count["decoder"] < 10.2e9


PAPER = {"vit_b": 86e6, "vit_l": 304e6, "vit_g": 1012e6, "palm_1b": 1.60e9, "palm_8b": 9.73e9}


@pytest.mark.parametrize("large", ["palm_1b", "palm_8b"])
@pytest.mark.parametrize("encoder", ["vit_b", "vit_l", "vit_g"])
def test_two_macros_choose_the_sizes_of_the_paper_s_recipes(encoder, large):
    for stage in ("stage2", "perceiver"):
        variants = [f"ENCODER_VARIANT={encoder!r}", f"LARGE_VARIANT={large!r}"]
        config = experiments.unopened([f"experiments/paper_{stage}.gin"], variants)
        shapes = trees.flatten(nn.unbox(boxed(config)))
        size = {part: sum(x.size for p, x in shapes.items() if p.startswith(part)) for part in ("encoder", "decoder")}
        assert size == {
            "encoder": pytest.approx(PAPER[encoder], rel=0.01),
            "decoder": pytest.approx(PAPER[large], rel=0.01),
        }
        assert config.data.batch_size == 2048 and config.train.steps == (60_000 if stage == "stage2" else 250_000)


@pytest.mark.parametrize(
    ("pair", "stage", "large", "trained", "frozen"),
    [
        ("siglip2_gemma3", 1, None, 269e6, 0.413e9),
        ("siglip2_gemma3", 2, None, 2.55e6, 4.56e9),
        ("siglip2_gemma3", 2, "gemma3_12b", 3.37e6, 12.45e9),
        ("siglip_qwen3", 2, None, 5.65e6, 9.20e9),
        ("clip_llama3", 2, None, 11.03e6, 9.57e9),
    ],
)
def test_the_pairs_of_open_weights_have_the_documented_sizes(pair, stage, large, trained, frozen, data_dir):
    config = resolve(f"open_stage{stage}.gin+{pair}.gin", data_dir, **({"LARGE_VARIANT": large} if large else {}))
    parts = freezing.partition(nn.unbox(boxed(config)), config.train.trainable)
    sizes = [sum(x.size for x in trees.flatten(part).values()) for part in parts]
    assert sizes == [pytest.approx(trained, rel=0.01), pytest.approx(frozen, rel=0.01)]


@pytest.mark.parametrize("mesh_file", MESHES)
def test_a_mesh_include_fits_its_slice_and_the_paper_s_recipes(mesh_file, data_dir):
    kind, chips, *_ = Path(mesh_file).stem.split("_")
    devices = int(chips) * TPU_TYPES[kind].devices_per_chip
    small = {"ENCODER_VARIANT": "vit_b", "LARGE_VARIANT": "palm_1b"}
    for recipe, chosen in (("paper_stage1", {}), ("paper_stage2", small), ("paper_perceiver", {})):
        config = resolve(f"{recipe}.gin", data_dir, [f"meshes/{mesh_file}"], BATCH_SIZE=2048, **chosen)
        mesh = config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == devices
        sizes = (1, mesh.data, mesh.fsdp, mesh.tensor)
        partitioner = Partitioner(jax.sharding.AbstractMesh(sizes, ("dcn", "data", "fsdp", "tensor")))
        partitioner.param_shardings(boxed(config))  # raises where a dimension does not divide
        assert config.data.batch_size % (devices * config.train.optimizer.accumulate) == 0


def test_a_tokeniser_larger_than_the_decoder_s_table_is_refused(data_dir):
    config = resolve("open_stage1.gin+siglip2_gemma3.gin", data_dir)
    decoder = dataclasses.replace(config.model.decoder, vocab_size=64)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    with pytest.raises(UserError, match="64 rows.*VOCABULARY"):
        _ = experiment.Parts(config).loader


# What nobody is told of must not go wrong in silence


OWN = """
include "runs/stage2_aligned.gin"
include "models/scenes.gin"
include "models/adapters/{adapter}.gin"
"""


@pytest.mark.parametrize("adapter", ["queries", "paper"])
def test_an_experiment_of_one_s_own_takes_what_its_adapter_can_take(adapter, tmp_path, data_dir):
    (tmp_path / "own.gin").write_text(OWN.format(adapter=adapter))
    own = experiments.unopened([str(tmp_path / "own.gin")], ["TRAIN_STEPS=1"])
    shipped = experiments.unopened([f"experiments/scenes_{adapter}.gin"])
    assert own.sources[-1].rules == shipped.sources[-1].rules
    given = trees.flatten(nn.unbox(boxed(resolve("scenes_stage1.gin", data_dir))))
    taken = sources.rename(given, own.sources[-1].rules, "stage 1")
    parts = {"/".join(path.split("/")[:2]) for path in taken}
    assert parts == ({"adapter/lm", "adapter/front"} if adapter == "queries" else {"adapter/lm"})


def test_an_adapter_without_rules_is_refused(tmp_path):
    (tmp_path / "own.gin").write_text(OWN.format(adapter="perceiver"))
    with pytest.raises(UserError, match="STAGE1_RULES is used and has no value.*--gin.STAGE1_RULES=VALUE"):
        experiments.unopened([str(tmp_path / "own.gin")], ["TRAIN_STEPS=1"])


@pytest.mark.parametrize("data", ["jsonl", "pairs", "mixture"])
def test_real_data_without_a_vocabulary_are_refused(data, tmp_path):
    (tmp_path / "own.gin").write_text(f'include "runs/stage1.gin"\ninclude "data/{data}.gin"\n')
    experiments.register()
    with pytest.raises(UserError, match="leave these to you: .*VOCABULARY.*--gin.VOCABULARY=VALUE"):
        parse_gin([str(tmp_path / "own.gin")])


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("paper_")])
def test_the_paper_s_recipes_ask_for_a_vocabulary(name):
    experiments.register()
    with pytest.raises(UserError, match="leave these to you: .*VOCABULARY"):
        parse_gin([f"experiments/{name}"])


def test_another_data_file_replaces_that_of_the_experiment(data_dir):
    weights = {"ENCODER_WEIGHTS": "e", "TINY_WEIGHTS": "t", "MODEL_DIR": "run", "TRAIN_FILES": str(SAMPLE)}
    bindings = [f"{macro}={value!r}" for macro, value in weights.items()]
    experiments.register()
    parse_gin(["experiments/own_stage1.gin", "data/pairs.gin"], [*bindings, "pairs_task.max_bad_share=1.0"])
    assert experiments.made().data.mixture == "pairs"
    with pytest.raises(UserError, match="leave these to you: TRAIN_FILES[.]"):
        parse_gin(["experiments/own_stage1.gin", "data/pairs.gin"], bindings[:-1])
