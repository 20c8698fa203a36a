"""A run of the command `train` that the harness strikes: a mixture of three sources with rates (images in tar files,
videos in Parquet files, clips that a JSONL file names), packing, LoRA beside an adapter, evaluations and TensorBoard.
"""

import json
import os
from pathlib import Path

import av  # noqa: F401  # what a process needs is imported before it is forked
import numpy as np
import seqio  # noqa: F401

from tests.data import pair_files
from tests.data.files import clip
from tests.faults import environment, struck
from tests.faults.run import Subject
from tests.faults.sessions import Session
from vadapter.base import exit_codes, trees
from vadapter.cli import main
from vadapter.partitioning import hosts  # noqa: F401
from vadapter.recipes import experiments  # noqa: F401
from vadapter.runs import train  # noqa: F401
from vadapter.training import checkpoints

STEPS = 10
RECORDS = 48
DATA = Path(environment.WORK) / "data"
BACKBONES = DATA / "backbones"
FILES = {"images": "{000..002}.tar", "videos": "{000..001}.parquet", "clips": "000.jsonl"}


def prepare() -> None:
    """Writes the data and a run whose encoder and language model all others take, once for all runs."""
    if DATA.exists():
        return
    for kind in FILES:
        (DATA / kind).mkdir(parents=True)
    for file, numbers in enumerate(np.array_split(np.arange(RECORDS), 3)):
        pair_files.write_tar(DATA / f"images/{file:03d}.tar", numbers.tolist())
    made = [clip(DATA / f"clips/{i}.mp4", [5 * i, 9 * i % 256, 250 - 3 * i, i], size=(32, 32)) for i in range(RECORDS)]
    for file, numbers in enumerate(np.array_split(np.arange(RECORDS), 2)):
        columns = {
            "video": [made[i].read_bytes() for i in numbers],
            "caption": [f"a film of {i} shades" for i in numbers],
        }
        pair_files.write_parquet(DATA / f"videos/{file:03d}.parquet", [], columns=columns)
    lines = [json.dumps({"video": path.name, "caption": [f"clip {path.stem}", "short"]}) for path in made]
    (DATA / "clips/000.jsonl").write_text("\n".join(lines) + "\n")
    whole = [*command(str(BACKBONES), 0, 1), "--gin.TRAINABLE=['.*']", "--gin.SOURCES=[]", "--gin.TRAIN_STEPS=1"]
    whole += ["--gin.EVALUATIONS=[]", "--gin.OptimizerConfig.warmup_steps=0", "--gin.large/decoder.lora=None"]
    session = Session(lambda: main.main(whole), DATA / "backbones.txt")  # this process computes nothing
    assert session.end() == exit_codes.DONE, session.said()


def shards() -> list[Path]:
    """Files of the data that hold records."""
    return sorted(path for kind in FILES for path in (DATA / kind).iterdir() if path.suffix != ".mp4")


def command(folder: str, every: int, keep: int) -> list[str]:
    """The command line."""
    model = {
        **{"encoder.width": 16, "encoder.depth": 1, "encoder.num_heads": 2, "encoder.mlp_dim": 16},
        **{"encoder.image_size": 16, "large/decoder.width": 16, "large/decoder.depth": 1, "decoder.head_dim": 8},
        **{"large/decoder.num_heads": 2, "large/decoder.mlp_dim": 16},
    }
    settings = {
        "MODEL_DIR": folder,
        **{f"{kind[:-1].upper()}_FILES": str(DATA / kind / pattern) for kind, pattern in FILES.items()},
        "ENCODER_WEIGHTS": str(BACKBONES),
        "LARGE_WEIGHTS": str(BACKBONES),
        "VOCABULARY": "scenes",
        "TASK_FEATURE_LENGTHS": {"inputs": 8, "targets": 24},
        "INDEX_DIR": str(DATA / "indexes"),
        "TRAIN_STEPS": STEPS,
        "BATCH_SIZE": 4,
        "EVAL_EVERY": 4,
        "LORA_RANK": 2,
        "pairs_task.holdout": 0.25,
        "val/LoaderConfig.eval_limit": 4,
        "TrainConfig.log_every": 1,
        "TrainConfig.checkpoint_every": every,
        "TrainConfig.keep_checkpoints": keep,
        "OptimizerConfig.warmup_steps": 2,
        "HostsConfig.initialization_timeout": int(os.environ.get("PATIENCE", 60)),
        **model,
    }
    files = ["runs/stage2.gin", "models/scenes.gin", "models/adapters/perceiver.gin", "data/mixture.gin"]
    files += ["optimizers/scenes.gin", "runs/lora.gin"]
    packing = "PackingConfig.window=2"  # rows of each of two processes
    references = [packing, "EVALUATIONS=[@val/Evaluation()]", "train/LoaderConfig.packing=@PackingConfig()"]
    bindings = [*(f"{name}={value!r}" for name, value in settings.items()), *references]
    return ["train", *(f"--gin_file={file}" for file in files), *(f"--gin.{binding}" for binding in bindings)]


def run(folder: str, report: str, every: int, keep: int) -> int:
    """Trains. Returns the exit status of the command."""
    del report  # `read_back` writes it
    print("The process has begun.", flush=True)
    return main.main(command(folder, every, keep))


def read_back(folder: str, report: str) -> int:
    """Writes hashes of all that the newest checkpoint holds. For a process of its own."""
    _, step = checkpoints.locate(folder)
    with checkpoints.Checkpointer(folder, read_only=True) as checkpointer:
        wanted = {item: trees.unflatten(checkpointer.shapes(step, item)) for item in ("params", "optimizer")}
        found = checkpointer._restore(step, wanted)
    arrays = {f"{item}/{path}": x for item in wanted for path, x in trees.flatten(found[item]).items()}
    hashes = {path: struck.hash_of(x) for path, x in arrays.items()} | {"step": str(step)}
    Path(report).write_text(json.dumps(hashes))
    return exit_codes.DONE


SUBJECT = Subject("the command `train`", STEPS, run, read_back, disk=24 << 20, shards=shards)
