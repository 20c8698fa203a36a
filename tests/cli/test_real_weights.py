"""Open weights, from a Hugging Face folder to a caption by a bundle, as a user types it."""

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.data.tokenizer_files import write_tokenizer
from tests.weights import families
from vadapter.base import resources
from vadapter.cli.main import main

pytestmark = pytest.mark.slow

SAMPLES = resources.folder("data") / "samples"
VOCABULARY = 512  # rows of the table: more than each of the small tokenisers has
SMALL = [
    "--gin.TRAIN_STEPS=3",
    "--gin.BATCH_SIZE=8",
    "--gin.NUM_QUERIES=4",
    "--gin.NUM_FRAMES=2",
    "--gin.OptimizerConfig.warmup_steps=1",
    "--gin.val/LoaderConfig.eval_limit=8",
    "--gin.jsonl_task.holdout=0.5",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 64}",
    *(f"--gin.{part}.dtype='float32'" for part in ("encoder", "decoder", "MlpConfig")),
]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the commands wrote."""

    encoder: Path
    large: Path
    stage1: Path
    stage2: Path
    output: str


def write_text_model(family: str, folder: Path, tokenizer: str) -> Path:
    """Writes a language model of a golden family with a tokeniser and a table that is large enough for it."""
    config, tensors = families.config(family), families.tensors(family)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = families.make_tensor(name, (VOCABULARY, tensors[name].shape[1]))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": VOCABULARY}))
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder, tokenizer)
    return folder


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def train_both_stages(sources: dict[str, Path], folder: Path, capsys, *more: str) -> Trained:
    """Imports an encoder, a tiny and a large LM, and trains both stages on the samples; `more` is for stage 2."""
    for name, source in sources.items():
        run("import", f"--source={source}", f"--out={folder / name}", "--dtype=f32")
    trained = Trained(folder / "encoder", folder / "large", folder / "stage1", folder / "stage2", "")
    includes = [f"--gin_file={folder / name / name}.gin" for name in ("encoder", "tiny", "large")]
    data = f"--gin.TRAIN_JSONL={str(SAMPLES / 'captions.jsonl')!r}"
    stage1 = f"--gin.MODEL_DIR={str(trained.stage1)!r}"
    run("train", "--gin_file=experiments/open_stage1.gin", *includes[:2], stage1, data, *SMALL)
    capsys.readouterr()
    stage2 = [f"--gin.MODEL_DIR={str(trained.stage2)!r}", f"--gin.STAGE1_RUN={str(trained.stage1)!r}"]
    run("train", "--gin_file=experiments/open_stage2.gin", *includes, *stage2, data, *SMALL, *more)
    return dataclasses.replace(trained, output=capsys.readouterr().out)


def captions_of(capsys, *arguments: object) -> list[str]:
    """What `infer` says of the samples, with some tokens of random models."""
    capsys.readouterr()
    media = [f"--media={SAMPLES / name}" for name in ("one.jpg", "moves.mp4")]
    run("infer", *arguments, *media, "--max_new_tokens=8")
    return capsys.readouterr().out.splitlines()


def test_siglip_gemma_and_qwen_become_a_bundle_that_says_what_the_run_says(tmp_path, capsys):
    sources = {
        "encoder": families.write_folder("siglip", tmp_path / "hf" / "siglip"),
        "tiny": write_text_model("gemma3_text", tmp_path / "hf" / "gemma", "gemma"),
        "large": write_text_model("qwen3", tmp_path / "hf" / "qwen", "qwen"),
    }
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 30, "width": 30}, "resample": 3}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (sources["encoder"] / "preprocessor_config.json").write_text(json.dumps(processor))
    trained = train_both_stages(sources, tmp_path, capsys)
    recorded = json.loads((trained.stage2 / "model.json").read_text())
    assert recorded["preprocessing"]["resize"] == recorded["model"]["encoder"]["resize"] == "stretch bicubic"
    # Tiny and large LM have different tokenisers: the tiny one keeps its table, by which it writes words.
    assert "for adapter/front, adapter/lm" in trained.output
    run("export", f"--checkpoint={trained.stage2}", f"--out={tmp_path / 'bundle'}")
    said = captions_of(capsys, f"--model_dir={trained.stage2}")
    assert sum(": " in line and "/samples/" in line for line in said) == 2
    assert said == captions_of(capsys, f"--bundle={tmp_path / 'bundle'}")
    # Anywhere else: the backbones where this user has them, and neither the run nor its data.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("bundle", "encoder", "large"):
        (tmp_path / name).rename(moved / name)
    trained.stage2.rename(tmp_path / "gone")
    backbones = [f"--encoder={moved / 'encoder'}", f"--decoder={moved / 'large'}"]
    assert said == captions_of(capsys, f"--bundle={moved / 'bundle'}", *backbones)


def test_the_tiny_lm_keeps_its_loss_by_one_more_file(tmp_path, capsys):
    sources = {
        "encoder": families.write_folder("siglip", tmp_path / "hf" / "siglip"),
        "tiny": write_text_model("gemma3_text", tmp_path / "hf" / "gemma", "gemma"),
        "large": write_text_model("qwen3", tmp_path / "hf" / "qwen", "qwen"),
    }
    more = ["--gin_file=models/adapters/words_supervised.gin", "--gin.TrainConfig.log_every=1"]
    more += ["--gin.EVALUATIONS=[@val/Evaluation(), @reliance/Evaluation()]", "--gin.TRAIN_STEPS=6"]
    trained = train_both_stages(sources, tmp_path, capsys, *more)
    lines = [json.loads(line) for line in (trained.stage2 / "curve.jsonl").read_text().splitlines()]
    own = [line["tiny_loss"] for line in lines if line["split"] == "train"]
    assert own[-1] < own[0] - 1 and "tiny loss" in trained.output
    assert [line for line in lines if line["split"] == "val"][-1]["tiny_loss"] > 0
    # What is trained needs stage 1 no more; only a run that goes on does.
    trained.stage1.rename(tmp_path / "gone")
    run("eval", f"--model_dir={trained.stage2}", f"--output={tmp_path / 'eval'}")
    measured = json.loads((tmp_path / "eval" / "metrics.json").read_text())["scores"]
    assert measured["val/loss"] == pytest.approx([line for line in lines if line["split"] == "val"][-1]["loss"])
    run("export", f"--checkpoint={trained.stage2}", f"--out={tmp_path / 'bundle'}")
    assert captions_of(capsys, f"--bundle={tmp_path / 'bundle'}")
    capsys.readouterr()
    again = [f"--gin_file={trained.stage2 / 'config.gin'}", f"--gin.MODEL_DIR={str(trained.stage2)!r}"]
    assert main(["train", *again]) == 2
    assert "stage1 is not there" in capsys.readouterr().err


@pytest.mark.parity
def test_models_saved_by_transformers_train_and_become_a_bundle(tmp_path, capsys):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}
    sizes = {"tiny": (32, 2), "large": (64, 7)}
    encoder = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision, intermediate_size=64))
    encoder.save_pretrained(tmp_path / "hf" / "encoder")
    for name, (width, depth) in sizes.items():
        shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
        config = transformers.Gemma3TextConfig(**text, **shape, vocab_size=VOCABULARY)
        transformers.Gemma3ForCausalLM(config).save_pretrained(tmp_path / "hf" / name, max_shard_size="100kB")
        write_tokenizer(tmp_path / "hf" / name, "gemma")
    trained = train_both_stages({n: tmp_path / "hf" / n for n in ("encoder", "tiny", "large")}, tmp_path, capsys)
    run("export", f"--checkpoint={trained.stage2}", f"--out={tmp_path / 'bundle'}")
    said = captions_of(capsys, f"--model_dir={trained.stage2}")
    assert said == captions_of(capsys, f"--bundle={tmp_path / 'bundle'}")
