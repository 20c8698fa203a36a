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
from vadapter.cli import experiments
from vadapter.cli.config import parse_gin
from vadapter.models import variants
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning import Partitioner
from vadapter.runs import experiment
from vadapter.training import freezing, initialize
from vadapter.weights import gin_text

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted(path.name for path in (resources.folder("gin") / "experiments").glob("*.gin"))
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


def resolve(name: str, data_dir: Path, more: Sequence[str] = (), batch_size: int = 8) -> experiment.Experiment:
    text = (resources.folder("gin") / "experiments" / name).read_text()
    values = {"MODEL_DIR": "run", "DATA_DIR": str(data_dir), "TRAIN_JSONL": str(SAMPLE), "STAGE1_RUN": "runs/stage1"}
    values |= {f"{run.upper()}_RUN": str(data_dir / run) for run in ("encoder", "tiny", "large")}
    values |= {f"{kind}_FILES": str(SAMPLE) for kind in ("IMAGE", "VIDEO", "CLIP")}
    bindings = [f"{macro}={value!r}" for macro, value in values.items() if f"--gin.{macro}=" in text]
    imported = [data_dir / part / f"{part}.gin" for part in ("encoder", "tiny", "large") if f"/{part}.gin" in text]
    experiments.register()
    world = [f"ScenesConfig.{field}" for field in SMALL_WORLD] if "DATA_DIR" in text else ["jsonl_task.holdout=0.5"]
    world += ["pairs_task.max_bad_share=1.0"] if "IMAGE_FILES" in text else []
    parse_gin([f"experiments/{name}", *map(str, imported), *more], [*bindings, *world, f"BATCH_SIZE={batch_size}"])
    return experiments.made()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_resolves_and_its_step_has_shapes(name, data_dir):
    config = resolve(name, data_dir)
    parts = experiment.Parts(config)
    abstract = nn.unbox(parts.abstract)
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
        ("paper_stage1_vitg.gin", "paper_stage2_vitg_8b.gin"),
        ("open_stage1.gin", "open_stage2.gin"),
        ("siglip2_gemma3_stage1.gin", "siglip2_gemma3_stage2_4b.gin"),
        ("siglip2_gemma3_stage1.gin", "siglip2_gemma3_stage2_12b.gin"),
        ("siglip_qwen3_stage1.gin", "siglip_qwen3_stage2_8b.gin"),
        ("clip_llama3_stage1.gin", "clip_llama3_stage2_8b.gin"),
    ],
)
def test_what_stage_1_hands_over_fits_stage_2(stage1, stage2, data_dir):
    given = trees.flatten(nn.unbox(experiment.Parts(resolve(stage1, data_dir)).abstract))
    config = resolve(stage2, data_dir)
    wanted = trees.flatten(nn.unbox(experiment.Parts(config).abstract))
    taken = initialize.rename(given, config.sources[-1].rules, "stage 1")
    assert {path: x.shape for path, x in taken.items()} == {path: wanted[path].shape for path in taken}
    assert {p for p in wanted if p.startswith("adapter/lm/")} <= taken.keys()


def test_the_paper_scale_recipe_is_the_paper_s(data_dir):
    config = resolve("paper_stage2_vitg_8b.gin", data_dir)
    assert isinstance(config.model, VLMConfig)
    assert config.model.num_visual_tokens(1) == config.model.num_visual_tokens(8) == 256
    shapes = trees.flatten(nn.unbox(experiment.Parts(config).abstract))
    count = {
        part: sum(x.size for p, x in shapes.items() if p.startswith(part)) for part in ("adapter", "encoder", "decoder")
    }
    assert 115e6 < count["adapter"] < 145e6  # the paper trains 130M
    assert 0.9e9 < count["encoder"] < 1.1e9
    assert 9.2e9 < count["decoder"] < 10.2e9


@pytest.mark.parametrize(
    ("name", "trained", "frozen"),
    [
        ("siglip2_gemma3_stage1.gin", 269e6, 0.413e9),
        ("siglip2_gemma3_stage2_4b.gin", 103e6, 4.29e9),
        ("siglip2_gemma3_stage2_12b.gin", 104e6, 12.18e9),
        ("siglip_qwen3_stage2_8b.gin", 446e6, 8.60e9),
        ("clip_llama3_stage2_8b.gin", 984e6, 8.33e9),
    ],
)
def test_the_recipes_on_open_weights_have_the_documented_sizes(name, trained, frozen, data_dir):
    config = resolve(name, data_dir)
    parts = freezing.partition(nn.unbox(experiment.Parts(config).abstract), config.train.trainable)
    sizes = [sum(x.size for x in trees.flatten(part).values()) for part in parts]
    assert sizes == [pytest.approx(trained, rel=0.01), pytest.approx(frozen, rel=0.01)]


@pytest.mark.parametrize("mesh_file", MESHES)
def test_a_mesh_include_fits_its_slice_and_the_paper_s_recipes(mesh_file, data_dir):
    chips = int(Path(mesh_file).stem.split("_")[1])
    for recipe in ("paper_stage1_vitg.gin", "paper_stage2_vitb_1b.gin", "paper_perceiver_vitg_8b.gin"):
        config = resolve(recipe, data_dir, [f"meshes/{mesh_file}"], batch_size=2048)
        mesh = config.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == chips
        sizes = (1, mesh.data, mesh.fsdp, mesh.tensor)
        partitioner = Partitioner(jax.sharding.AbstractMesh(sizes, ("dcn", "data", "fsdp", "tensor")))
        partitioner.param_shardings(experiment.Parts(config).abstract)  # raises where a dimension does not divide
        assert config.data.batch_size % (chips * config.train.optimizer.accumulate) == 0


def test_a_tokeniser_larger_than_the_decoder_s_table_is_refused(data_dir):
    config = resolve("siglip2_gemma3_stage1.gin", data_dir)
    decoder = dataclasses.replace(config.model.decoder, vocab_size=64)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    with pytest.raises(UserError, match="64 rows.*VOCABULARY"):
        _ = experiment.Parts(config).loader
