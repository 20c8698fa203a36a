"""Every shipped experiment resolves, and its training step has shapes that fit."""

from pathlib import Path

import jax
import pytest
from flax import linen as nn

from vadapter import resources, trees
from vadapter.cli import experiment
from vadapter.cli.config import parse_gin
from vadapter.models.vlm import VLMConfig
from vadapter.training import freezing, initialize

EXPERIMENTS = sorted(path.name for path in (resources.folder("gin") / "experiments").glob("*.gin"))
SAMPLE = resources.folder("data") / "samples" / "captions.jsonl"
SMALL_WORLD = ["train=8", "validation=8", "test=8", "video_train=8", "video_eval=8", "text_train=8", "text_eval=8"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def resolve(name: str, data_dir: Path) -> experiment.Experiment:
    text = (resources.folder("gin") / "experiments" / name).read_text()
    values = {"MODEL_DIR": "run", "DATA_DIR": str(data_dir), "TRAIN_JSONL": str(SAMPLE)}
    values |= {run: f"runs/{run}" for run in ("ENCODER_RUN", "TINY_RUN", "LARGE_RUN", "STAGE1_RUN")}
    bindings = [f"{macro}={value!r}" for macro, value in values.items() if f"--gin.{macro}=" in text]
    experiment.register()
    world = [f"ScenesConfig.{field}" for field in SMALL_WORLD] if "DATA_DIR" in text else ["jsonl_task.holdout=0.5"]
    parse_gin([f"experiments/{name}"], [*bindings, *world, "BATCH_SIZE=8"])
    return experiment.configured()


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
