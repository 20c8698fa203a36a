"""The miniature that decides: arms of the demo's world over learning rates and seeds, to one table.

python examples/miniature/run.py                          all parts, into runs/miniature: hours on two cores
python examples/miniature/run.py pretrain arms            some of them
python examples/miniature/run.py arms --only words,mlp    some arms of a part

A seed has its own encoder, language models and stage 1, each trained from other random numbers on data in another
order; the pictures are the same for all seeds. The learning rate of each arm is swept with the first seed and chosen by
validation loss; the figures are those of the test split, which chooses nothing. What is finished is not done again.
`tables.py` writes what docs/experiments.md shows.
"""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

RATES = "1e-3,3e-3,1e-2"
GIN = "examples/miniature/gin"
QUERIES, WORDS, PAPER = "experiments/scenes_queries.gin", "experiments/scenes_words.gin", "experiments/scenes_paper.gin"
RANDOM, PERCEIVER = "experiments/scenes_queries_random.gin", "experiments/scenes_perceiver.gin"
SLOW_LM = '[("adapter/lm/.*", 0.1)]'
FROZEN = "models/adapters/words_frozen.gin"  # over WORDS
SMALL, LARGE = f"{GIN}/encoder_small.gin", f"{GIN}/encoder_large.gin"
DECODERS = {"small": f"{GIN}/decoder_small.gin", "large": f"{GIN}/decoder_large.gin"}
SHALLOW, DEEP = f"{GIN}/tiny_shallow.gin", f"{GIN}/tiny_deep.gin"
BARE = {"HANDOFF": "None", "NUM_PREFIX": "0"}  # as stage 1 leaves it
CACHE = "Experiment.feature_cache"
WEIGHTS = ("STAGE1_RUN", "ENCODER_WEIGHTS", "LARGE_WEIGHTS", "TINY_WEIGHTS", CACHE)


@dataclasses.dataclass(frozen=True)
class Arm:
    """Gin files, macros and learning rates of an arm. The values of macros in WEIGHTS are parts of the seed's world.

    `module` is what its gin files need (`vadapter train --module`).
    """

    files: tuple[str, ...]
    macros: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rates: str = RATES
    module: str = ""


ARMS = {
    "perceiver": Arm((PERCEIVER,)),
    "queries_random": Arm((RANDOM,)),
    "aligned": Arm((QUERIES,), {"STAGE1_RUN": "stage1", **BARE}),
    "queries": Arm((QUERIES,), {"STAGE1_RUN": "stage1"}),
    # A fourth rate where the best of three was the outermost.
    "queries_frozen": Arm(("experiments/scenes_queries_frozen.gin",), {"STAGE1_RUN": "stage1"}, f"{RATES},3e-2"),
    "words": Arm((WORDS,), {"STAGE1_RUN": "stage1"}, f"3e-4,{RATES}"),
}
# Variants, at the learning rate that `arms` chose for their like.
RATE = "3e-3"
RECIPES = {
    "text": Arm((QUERIES, f"{GIN}/text_only.gin"), {"STAGE1_RUN": "tiny", **BARE}, RATE),
    # A language model that saw no pictures has no prompt to stand before them: the map alone.
    "text_handoff": Arm((QUERIES, f"{GIN}/text_only.gin"), {"STAGE1_RUN": "tiny", "NUM_PREFIX": "0"}, RATE),
    "text_words": Arm((WORDS, f"{GIN}/text_words.gin"), {"STAGE1_RUN": "tiny"}, f"3e-4,{RATES}"),
    "map_only": Arm((QUERIES,), {"STAGE1_RUN": "stage1", "NUM_PREFIX": "0"}, RATE),
    "prompt_only": Arm((QUERIES,), {"STAGE1_RUN": "stage1", "Handoff.output": "'random'"}, RATE),
    "scale": Arm((QUERIES,), {"STAGE1_RUN": "stage1", "Handoff.output": "'scale'"}, RATE),
    "answer": Arm((QUERIES,), {"STAGE1_RUN": "stage1", "Handoff.queries": "'answer'"}, RATE),
    # The tiny LM at a tenth of the rate of the maps and queries.
    "slow_lm": Arm((QUERIES,), {"STAGE1_RUN": "stage1", "OptimizerConfig.lr_multipliers": SLOW_LM}, "3e-3,1e-2,3e-2"),
    "slow_lm_random": Arm((RANDOM,), {"OptimizerConfig.lr_multipliers": SLOW_LM}, "1e-2,3e-2"),
    "words_frozen": Arm((WORDS, FROZEN), {"STAGE1_RUN": "stage1"}, "1e-2,3e-2,1e-1"),
    "queries_random_32": Arm((RANDOM,), {"NUM_QUERIES": "32"}, RATE),
    "gumbel": Arm((QUERIES, "models/quantization/gumbel.gin"), {"STAGE1_RUN": "stage1"}, RATE),
    "paper": Arm((PAPER,), {"STAGE1_RUN": "stage1"}, RATE),
    "paper_handoff": Arm((PAPER, "runs/handoff.gin"), {"STAGE1_RUN": "stage1"}, RATE),
    "perceiver_wide": Arm((PERCEIVER, f"{GIN}/perceiver_wide.gin"), rates=RATE),
    "mlp": Arm((f"{GIN}/mlp.gin",), rates=RATE),
}
# Twice the steps of stage 1 and stage 2 together.
LONG = {
    "perceiver_long": Arm((PERCEIVER,), {"TRAIN_STEPS": "2960", "EVAL_EVERY": "120"}),
}
# Stage 2 with fewer scenes, at the learning rate that `arms` chose with all 8,000. The first N of them.
SIZES = {
    f"{name}_{scenes}": dataclasses.replace(arm, macros={**arm.macros, "ScenesConfig.train": scenes}, rates=rate)
    for scenes in ("100", "1000")
    for name, arm, rate in (
        ("perceiver", ARMS["perceiver"], RATE),
        ("queries_random", ARMS["queries_random"], RATE),
        ("aligned", ARMS["aligned"], RATE),
        ("words", ARMS["words"], "1e-3"),
        ("words_frozen", RECIPES["words_frozen"], "3e-2"),
    )
}
# The rows of the paper's Table 1, in the sizes of the demo: one thing differs from its best row, which is `perceiver`.
TABLE1 = {
    f"perceiver_{name}": Arm((PERCEIVER,), {f"PerceiverConfig.{field}": value}, RATE)
    for name, field, value in (
        ("norm_final", "layer_norm", "'final'"),
        ("norm_shared", "layer_norm", "'shared'"),
        ("norm_separate_final", "layer_norm", "'separate_final'"),
        ("no_ffn", "ffn", "False"),
        ("no_time", "time_embedding", "False"),
        ("query_32", "query_dim", "32"),
        ("query_128", "query_dim", "128"),
        ("hidden_32", "hidden_dim", "32"),
        ("hidden_128", "hidden_dim", "128"),
        ("layers_1", "num_layers", "1"),
        ("layers_2", "num_layers", "2"),
        ("layers_6", "num_layers", "6"),
    )
}
# What else a seed's world holds, where a part of run.py asks for it: an experiment, gin files over it, and its sources.
EXTRA = {
    "vit_small": Arm(("experiments/scenes_vit.gin", SMALL)),
    "vit_large": Arm(("experiments/scenes_vit.gin", LARGE)),
    "captioner": Arm(("experiments/scenes_stage1.gin", f"{GIN}/captioner.gin"), {"TINY_WEIGHTS": "tiny"}),
    "contrastive": Arm(
        ("experiments/scenes_stage1.gin", f"{GIN}/contrastive.gin"),
        {"TINY_WEIGHTS": "tiny"},
        module="examples.miniature.contrastive",
    ),
    **{f"large_{size}": Arm(("experiments/scenes_large.gin", file)) for size, file in DECODERS.items()},
    "tiny_shallow": Arm(("experiments/scenes_tiny.gin", SHALLOW)),
    "tiny_deep": Arm(("experiments/scenes_tiny.gin", DEEP)),
}


def _stage1(encoder: str, tiny: str, *files: str) -> Arm:
    return Arm(("experiments/scenes_stage1.gin", *files), {"ENCODER_WEIGHTS": encoder, "TINY_WEIGHTS": tiny})


EXTRA |= {
    "stage1_small": _stage1("vit_small", "tiny", SMALL),
    "stage1_large": _stage1("vit_large", "tiny", LARGE),
    "stage1_captioner": _stage1("captioner", "tiny"),
    "stage1_contrastive": _stage1("contrastive", "tiny"),
    "stage1_shallow": _stage1("vit", "tiny_shallow", SHALLOW),
    "stage1_deep": _stage1("vit", "tiny_deep", DEEP),
}


def _variant(arm: Arm, rate: str, files: tuple[str, ...] = (), **macros: str) -> Arm:
    kept = {name: value for name, value in macros.items() if name != "STAGE1_RUN" or name in arm.macros}
    return Arm((*arm.files, *files), {**arm.macros, **kept}, rate)


CHOSEN = {  # arms that go into other worlds, and their rates
    "perceiver": (ARMS["perceiver"], RATE),
    "queries_random": (ARMS["queries_random"], RATE),
    "queries": (ARMS["queries"], RATE),
    "words_frozen": (RECIPES["words_frozen"], "3e-2"),
}
# An encoder that captions alone trained, written or told from one another, in place of labels of what stands where.
ENCODERS = {
    f"{name}_{encoder}": _variant(arm, rate, ENCODER_WEIGHTS=encoder, STAGE1_RUN=f"stage1_{encoder}")
    for encoder in ("captioner", "contrastive")
    for name, (arm, rate) in CHOSEN.items()
}
# The tiny LM with one layer, and with four, in place of two.
DEPTHS = {
    f"{name}_{depth}": _variant(CHOSEN[name][0], CHOSEN[name][1], (file,), STAGE1_RUN=f"stage1_{depth}")
    for depth, file in (("shallow", SHALLOW), ("deep", DEEP))
    for name in ("queries_random", "words_frozen")
}
# Three encoders by three decoders; ENCODER_DECODER is the name, and the demo's own are `base`.
SCALES = {
    f"{name}_{encoder}_{decoder}": _variant(
        CHOSEN[name][0],
        CHOSEN[name][1],
        tuple(file for file in (encoder_file, DECODERS.get(decoder)) if file),
        ENCODER_WEIGHTS="vit" if encoder == "base" else f"vit_{encoder}",
        LARGE_WEIGHTS="large" if decoder == "base" else f"large_{decoder}",
        STAGE1_RUN="stage1" if encoder == "base" else f"stage1_{encoder}",
    )
    for encoder, encoder_file in (("small", SMALL), ("base", None), ("large", LARGE))
    for decoder in ("small", "base", "large")
    for name in ("perceiver", "words_frozen")
    if (encoder, decoder) != ("base", "base")
}
SWEEPS = {"arms": ARMS, "long": LONG, "recipes": RECIPES, "sizes": SIZES}
# The tiny LM keeps its captioning loss in stage 2.
SUPERVISION = {
    "words_supervised": Arm((WORDS, "models/adapters/words_supervised.gin"), {"STAGE1_RUN": "stage1"}),
}
# The features of the pictures and the words of the frozen tiny LM are written once (`vadapter cache`).
_CACHED = {"STAGE1_RUN": "stage1", CACHE: "words_cache"}
CACHED = {"words_cached": Arm((WORDS, FROZEN), _CACHED, "3e-2")}
SWEEPS |= {"supervision": SUPERVISION, "cached": CACHED}
SCORED = tuple(SWEEPS)  # parts whose runs also say captions and answers
SWEEPS |= {"table1": TABLE1, "encoders": ENCODERS, "depths": DEPTHS, "scales": SCALES}
PARTS = ("pretrain", *SWEEPS)


def main() -> None:
    """Runs the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", default="runs/miniature", type=Path, help="folder of everything (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="the first chooses (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one core each (default: 2)")
    parser.add_argument("--only", default="", metavar="ARM,ARM", help="arms of the part; default all")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    args.out = args.out.resolve()
    for part in (p for p in PARTS if p in (args.parts or PARTS)):
        if part == "pretrain":
            pretrain(args.out, args.seeds.split(","))
        else:
            arms = SWEEPS[part]
            chosen = args.only.split(",") if args.only else list(arms)
            arms = {name: arms[name] for name in chosen}
            pretrain_extra(args.out, args.seeds.split(","), arms)
            write_caches(args.out, args.seeds.split(","), arms)
            sweep(args, part, arms)


def pretrain(out: Path, seeds: Sequence[str]) -> None:
    """Trains encoder, language models and stage 1 of each seed, as the demo does."""
    for seed in seeds:
        parts = "--parts=vit,tiny,large,stage1"
        vadapter("demo", f"--output={world(out, seed)}", f"--seed={seed}", parts, f"--gin.DATA_DIR={str(data(out))!r}")


def pretrain_extra(out: Path, seeds: Sequence[str], arms: Mapping[str, Arm]) -> None:
    """Trains what arms ask for that the demo does not have."""
    asked = {value for arm in arms.values() for name, value in arm.macros.items() if name in WEIGHTS}
    more = {value for name in asked & set(EXTRA) for value in EXTRA[name].macros.values()}
    for seed in seeds:
        for name in (name for name in EXTRA if name in asked | more):
            folder, part = world(out, seed) / name, EXTRA[name]
            if not (folder / "done.json").exists():
                given = {"MODEL_DIR": folder, "DATA_DIR": data(out)}
                given |= {macro: world(out, seed) / value for macro, value in part.macros.items()}
                settings = [f"--gin.{macro}={str(path)!r}" for macro, path in given.items()]
                files = [f"--gin_file={file}" for file in part.files]
                vadapter("train", *_modules(part), *files, *settings, f"--gin.SEED={seed}")


def write_caches(out: Path, seeds: Sequence[str], arms: Mapping[str, Arm]) -> None:
    """Writes the features and words of the arms that read them."""
    for arm in (arm for arm in arms.values() if CACHE in arm.macros):
        for seed in seeds:
            given = {"DATA_DIR": data(out), "ENCODER_WEIGHTS": world(out, seed) / "vit"}
            given |= {"LARGE_WEIGHTS": world(out, seed) / "large", "STAGE1_RUN": world(out, seed) / "stage1"}
            settings = [f"--gin.{macro}={str(path)!r}" for macro, path in given.items()]
            files = [f"--gin_file={file}" for file in arm.files]
            vadapter(
                "cache", *files, *settings, f"--gin.SEED={seed}", "--words", f"--out={world(out, seed) / 'words_cache'}"
            )


def world(out: Path, seed: str) -> Path:
    """The pretrained models and stage 1 of a seed."""
    return out / "world" / f"seed{seed}"


def data(out: Path) -> Path:
    """The pictures and questions, which all seeds share."""
    return out / "world" / "data"


def sweep(args: argparse.Namespace, part: str, arms: Mapping[str, Arm]) -> None:
    """Trains arms over learning rates and seeds, into the folder of the part."""
    there = world(args.out, "{seed}")
    command = ["sweep", f"--out={args.out / part}", f"--seeds={args.seeds}", f"--workers={args.workers}"]
    command += ["--worker_env=NPROC=1", "--test=test/loss"]
    command += _modules(*arms.values())
    for name, arm in arms.items():
        command.append(f"--arm={name}={','.join(arm.files)}")
        command.append(f"--over={name}:OptimizerConfig.learning_rate={arm.rates}")
        for macro, value in arm.macros.items():
            command.append(f"--arm_gin={name}:{macro}={repr(str(there / value)) if macro in WEIGHTS else value}")
    command += [
        f"--gin_file={GIN}/{'measure' if part in SCORED else 'measure_loss'}.gin",
        f"--gin.DATA_DIR={str(data(args.out))!r}",
    ]
    command += [f"--gin.ENCODER_WEIGHTS={str(there / 'vit')!r}", f"--gin.LARGE_WEIGHTS={str(there / 'large')!r}"]
    vadapter(*command)


def _modules(*arms: Arm) -> list[str]:
    return [f"--module={name}" for name in sorted({arm.module for arm in arms} - {""})]


def vadapter(*command: str) -> None:
    """Runs a command of vadapter; ends where it fails."""
    if status := subprocess.call([sys.executable, "-m", "vadapter", *command]):
        sys.exit(status)


if __name__ == "__main__":
    main()
