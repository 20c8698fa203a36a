"""A bundle at real sizes with random weights, for measurements on a machine that has none: SigLIP B/16 at 224 pixels,
a perceiver, Gemma 3 270M, 0.7 GB in bf16. It needs torch and transformers, and no network.
"""

import json
import subprocess
import sys
from pathlib import Path

from vadapter.base import resources

SAMPLES = resources.folder("data") / "samples"
PICTURE = SAMPLES / "one.jpg"


def make(folder: Path, small: bool = False) -> tuple[str, list[str]]:
    """Writes models as transformers saves them, imports them, and trains and exports a bundle of one step.

    Args:
        folder: is made, and must not be there.
        small: sizes of a rehearsal.

    Returns:
        The bundle, and the arguments of `vadapter train` that made it, without its MODEL_DIR and TRAIN_STEPS.
    """
    for name, write in (("encoder", _encoder), ("large", _large)):
        write(folder / f"{name}_source", small)
        _vadapter("import", f"--source={folder / f'{name}_source'}", f"--out={folder / name}")
    arguments = [
        "--gin_file=experiments/open_perceiver.gin",
        *(f"--gin_file={folder / name / name}.gin" for name in ("encoder", "large")),
        f"--gin.TRAIN_JSONL={str(SAMPLES / 'captions.jsonl')!r}",
        "--gin.BATCH_SIZE=8",
        "--gin.OptimizerConfig.warmup_steps=0",
        "--gin.jsonl_task.holdout=0.5",
        "--gin.EVALUATIONS=[]",
    ]
    if small:
        sizes = {"num_queries": 4, "num_layers": 1, "query_dim": 64, "hidden_dim": 64, "num_heads": 2}
        arguments += [f"--gin.PerceiverConfig.{name}={value}" for name, value in sizes.items()]
    run = folder / "run"
    _vadapter("train", *arguments, f"--gin.MODEL_DIR={str(run)!r}", "--gin.TRAIN_STEPS=1")
    _vadapter("export", f"--checkpoint={run}", f"--out={folder / 'bundle'}")
    return str(folder / "bundle"), arguments


def _vadapter(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "vadapter", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"vadapter {arguments[0]}: {done.stderr[-1500:]}")


def _encoder(folder: Path, small: bool) -> None:
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipVisionConfig(**(sizes if small else {}))  # type: ignore[arg-type]
    SiglipVisionModel(config).to(torch.bfloat16).save_pretrained(folder)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224, "width": 224}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", **pixels})
    )


def _large(folder: Path, small: bool) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=512 if small else 262_144,
        hidden_size=64 if small else 640,
        intermediate_size=128 if small else 2048,
        num_hidden_layers=2 if small else 18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32 if small else 256,
        query_pre_attn_scalar=256,
        sliding_window=512,
    )
    Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(words[:3])
    bytewise.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
