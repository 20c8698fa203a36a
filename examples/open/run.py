"""From nothing to a trained adapter between real models, and a report: what `make open` runs.

python examples/open/run.py                       all parts, in their order
python examples/open/run.py arms report           these parts only
STEPS=1000 SEEDS=0,1,2 python examples/open/run.py

Parts: fetch, import, data, stage1, arms, evaluate, export, report; and tune, a third stage, where it is named. Each
prints vadapter's commands that it runs. What is finished is not done again, and what was stopped goes on where it was.
"""

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARMS = ("perceiver", "mlp", "pixel_shuffle", "queries", "queries_frozen", "words_frozen")
MORE_ARMS = ("words_supervised",)  # trained where they are named
ALIGNED = ("queries", "queries_frozen", "words_frozen", "words_supervised")  # those that go on from stage 1
BASELINE = "perceiver"
TUNED = "queries_frozen"  # the arm that stage 3 goes on from
MODELS = {
    "vit": "models/vit",
    "smollm2": "raw/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3": "raw/gemma-3-270m-q4_k_m.gguf",
}
# What can be trained on: the tokens of text that a row needs, and what is measured at the end.
SETS = {
    "captions": ("8", ("captions_test", "captions_unseen_hand")),
    "questions": ("40", ("questions_test", "questions_unseen_hand")),
    "easy_vqa": ("40", ("easy_vqa_test",)),
    "all": ("40", ("captions_test", "captions_unseen_hand", "questions_test", "easy_vqa_test")),
}


class Failed(Exception):
    """A part did not end well; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        data: folder of downloads, imported weights and JSONL files.
        runs: folder of runs, results and the report.
        arms: some of `ARMS` and `MORE_ARMS`.
        seeds: a seed is a stage 1 and an arm of each kind.
        steps: of each run; None takes those of the gin files.
        limit: most rows of a test; 0 is all.
        train_on: one of `SETS`.
        gin: more settings, `NAME=VALUE` each, for each training.
    """

    data: Path
    runs: Path
    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    limit: int = 96
    train_on: str = "captions"
    gin: tuple[str, ...] = ()

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the JSONL files that are measured at the end. The first is the report's."""
        return SETS[self.train_on][1]

    def run(self, seed: int, name: str) -> Path:
        """The MODEL_DIR of stage 1 or of an arm."""
        return self.runs / f"seed{seed}" / name

    def each(self) -> Iterator[tuple[int, str, Path]]:
        """Gives (seed, arm, MODEL_DIR)."""
        for seed in self.seeds:
            for arm in self.arms:
                yield seed, arm, self.run(seed, arm)


def shown(path: Path) -> str:
    """A path as it is written in commands, seen from the repository."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def quoted(path: Path) -> str:
    """A path as a value of gin."""
    return json.dumps(shown(path))


def vadapter(*arguments: str) -> None:
    """Runs a command of vadapter in the repository's folder.

    Raises:
        Failed: it ended with an error, which it has printed.
    """
    print(f"\n$ {shlex.join(['vadapter', *arguments])}", flush=True)
    status = subprocess.run([sys.executable, "-m", "vadapter", *arguments], cwd=ROOT).returncode
    if status:
        raise Failed(
            f"`vadapter {arguments[0]}` ended with status {status}; its message is above. Run this again to go on."
        )


# --- the parts ------------------------------------------------------------------------------------------------------


def fetch(settings: Settings) -> None:
    """Downloads packages and takes models and pictures out of them."""
    import fetch as registries

    registries.fetch(settings.data)


def import_(settings: Settings, names: Sequence[str] = tuple(MODELS)) -> None:
    """Imports the three models, or some."""
    import folders

    for name in names:
        source, out = MODELS[name], settings.data / "weights" / name
        if out.is_dir():
            print(f"{shown(out)} is there.")
            continue
        if name == "vit":
            onnx = need(settings.data / "raw/vit_s_focus.onnx", "fetch")
            folders.make(onnx, settings.data / source)
        vadapter("import", f"--source={shown(need(settings.data / source, 'fetch'))}", f"--out={shown(out)}")


def data(settings: Settings) -> None:
    """Writes the JSONL files and pictures."""
    import fetch as registries
    import write_data

    raw = settings.data / "raw"
    for source in registries.SOURCES:
        for file in source.files if source.name not in MODELS else ():
            need(raw / file, "fetch")
    for name, count in write_data.write(raw, settings.data / "sets").items():
        print(f"{name:26} {count:7,} rows")


def stage1(settings: Settings) -> None:
    """Trains SmolLM2 as the decoder of the frozen ViT."""
    for seed in settings.seeds if set(settings.arms) & set(ALIGNED) else ():
        train(settings, "stage1", seed)


def arms(settings: Settings) -> None:
    """Trains the adapters between the frozen ViT and the frozen Gemma."""
    for seed, arm, _ in settings.each():
        train(settings, arm, seed)


def train(settings: Settings, name: str, seed: int) -> None:
    """Trains stage 1 or an arm, unless it is finished."""
    folder = settings.run(seed, name)
    sets = settings.data / "sets"
    macros = {
        "MODEL_DIR": quoted(folder),
        "TRAIN_JSONL": quoted(need(sets / f"{settings.train_on}_train.jsonl", "data")),
        "SEED": str(seed),
        "TASK_FEATURE_LENGTHS": f'{{"inputs": {SETS[settings.train_on][0]}, "targets": 16}}',
    }
    held_out = sets / f"{settings.train_on}_validation.jsonl"
    if held_out.is_file():  # easy-VQA has none: a share of its training pictures is held out
        macros["VALIDATION_JSONL"] = quoted(held_out)
    if name in ALIGNED:
        macros["STAGE1_RUN"] = quoted(need(settings.run(seed, "stage1") / "done.json", "stage1").parent)
        macros["HANDOFF_TEXTS"] = quoted(sets / "texts.txt")
    run(settings, folder, name, macros)


def run(settings: Settings, folder: Path, gin: str, macros: dict[str, str], *more: str) -> None:
    """Runs `vadapter train` on a gin file of this example, unless the run is finished."""
    if (folder / "done.json").is_file():
        print(f"{shown(folder)} is finished.")
        return
    macros = dict(macros)
    if settings.steps:
        macros["TRAIN_STEPS"] = str(settings.steps)
        macros["OptimizerConfig.warmup_steps"] = str(max(1, settings.steps // 10))
    for model in MODELS:
        need(settings.data / "weights" / model, "import")
    given = [*(f"{name}={value}" for name, value in macros.items()), *settings.gin]
    vadapter(
        "train",
        f"--gin_search_paths={shown(settings.data)}",
        f"--gin_file=examples/open/gin/{gin}.gin",
        *more,
        *(f"--gin.{setting}" for setting in given),
    )


def evaluate(settings: Settings) -> None:
    """Measures each arm on what it never saw. The first test goes beside the run, where the report looks for it."""
    for _, _, folder in settings.each():
        need(folder / "done.json", "arms")
        for number, test in enumerate(settings.tests):
            out = folder if number == 0 else folder / test
            if (out / "metrics.json").is_file():
                print(f"{shown(out)}/metrics.json is there.")
                continue
            vadapter(
                "eval",
                f"--model_dir={shown(folder)}",
                f"--output={shown(out)}",
                f"--gin.VALIDATION_JSONL={quoted(settings.data / 'sets' / f'{test}.jsonl')}",
                "--gin.EVALUATIONS=[@generation/Evaluation(), @reliance/Evaluation()]",
                f"--gin.val/LoaderConfig.eval_limit={settings.limit}",
            )


def export(settings: Settings) -> None:
    """Writes the bundle of the arm that is best on validation; the test chooses nothing."""
    out = settings.runs / "bundle"
    if not out.is_dir():
        found = {
            folder: validation_loss(folder) for _, _, folder in settings.each() if (folder / "done.json").is_file()
        }
        if not found:
            raise Failed(f"{shown(settings.runs)} has no finished arm. Run the part `arms` first.")
        best = min(found, key=lambda folder: found[folder])
        print(f"{best.name} of {best.parent.name} has the lowest loss on validation, {found[best]:.3f}.")
        vadapter("export", f"--checkpoint={shown(best)}", f"--out={shown(out)}")
    line = json.loads((settings.data / "sets" / f"{settings.tests[0]}.jsonl").read_text().splitlines()[0])
    picture = shown(settings.data / "sets" / line["image"])
    print(f"\nAsk it: vadapter infer --bundle {shown(out)} --media {picture}")


def validation_loss(folder: Path) -> float:
    """The last validation loss of a run."""
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "val"][-1]


def tune(settings: Settings) -> None:
    """Stage 3: an arm after stage 2, and LoRA on Gemma, learn to chat about two pictures. Measured before and after."""
    sets = settings.data / "sets"
    for seed in settings.seeds:
        folder = settings.run(seed, "tune")
        adapted, tuned = folder.with_name("adapted"), folder.with_name("tuned")
        if not adapted.is_dir():
            finished = need(settings.run(seed, TUNED) / "done.json", "arms").parent
            vadapter("export", f"--checkpoint={shown(finished)}", f"--out={shown(adapted)}")
        macros = {
            "MODEL_DIR": quoted(folder),
            "CHAT_FILES": quoted(need(sets / "chats_train.jsonl", "data")),
            "VALIDATION_FILES": quoted(need(sets / "chats_validation.jsonl", "data")),
            "STAGE1_RUN": quoted(need(settings.run(seed, "stage1") / "done.json", "stage1").parent),
            "SEED": str(seed),
        }
        run(settings, folder, "tune", macros, f"--bundle={shown(adapted)}")
        test = f"--gin.VALIDATION_FILES={quoted(need(sets / 'chats_test.jsonl', 'data'))}"
        limit = f"--gin.val/LoaderConfig.eval_limit={settings.limit}"
        before, after = folder / "before", folder / "after"
        if not (before / "metrics.json").is_file():
            vadapter(
                "eval",
                f"--bundle={shown(adapted)}",
                f"--output={shown(before)}",
                "--gin_file=runs/eval.gin",
                "--gin_file=data/chat.gin",
                f"--gin.CHAT_FILES={quoted(sets / 'chats_train.jsonl')}",
                test,
                f"--gin.VOCABULARY={quoted(settings.data / 'weights' / 'gemma3')}",
                '--gin.PROMPT_FORMAT="chat"',
                '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 24}',
                "--gin.DecodingConfig.max_new_tokens=16",
                "--gin.BATCH_SIZE=8",
                limit,
            )
        if not (after / "metrics.json").is_file():
            vadapter(
                "eval",
                f"--model_dir={shown(folder)}",
                f"--output={shown(after)}",
                test,
                "--gin.EVALUATIONS=[@val/Evaluation(), @generation/Evaluation(), @reliance/Evaluation()]",
                limit,
            )
        if not tuned.is_dir():
            vadapter("export", f"--checkpoint={shown(folder)}", f"--out={shown(tuned)}")
        print(compared(before, after))


def compared(before: Path, after: Path) -> str:
    """What two evaluations found, as lines of text."""
    a, b = (json.loads((folder / "metrics.json").read_text())["scores"] for folder in (before, after))
    rows = [f"{name:32} {a[name]:9.3f} {b[name]:9.3f}" for name in a if name in b]
    return "\n".join([f"{'score':32} {'before':>9} {'after':>9}", *rows])


def report(settings: Settings) -> None:
    """Writes report.html, curves.svg and results.json, and prints the table."""
    there = [folder for _, _, folder in settings.each() if (folder / "metrics.json").is_file()]
    if not there:
        raise Failed(f"{shown(settings.runs)} has no arm that was measured. Run the part `evaluate` first.")
    baseline = [f"--baseline={BASELINE}"] if len(settings.seeds) == 1 and BASELINE in settings.arms else []
    vadapter(
        "report",
        *map(shown, there),
        *baseline,
        "--title=Adapters between real models",
        f"--output={shown(settings.runs / 'report.html')}",
        f"--picture={shown(settings.runs / 'curves.svg')}",
    )
    results = [result(folder, settings.tests) for folder in there]
    (settings.runs / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    print(f"\nReport, open it in a browser: {shown(settings.runs / 'report.html')}")


def result(folder: Path, tests: Sequence[str]) -> dict[str, Any]:
    """What a run cost, and what each test found."""
    done = json.loads((folder / "done.json").read_text())
    found: dict[str, Any] = {
        "arm": folder.name,
        "seed": folder.parent.name.removeprefix("seed"),
        "steps": done.get("step"),
        "seconds": done.get("seconds"),
        "trained_parameters": done.get("trainable_params"),
    }
    for number, test in enumerate(tests):
        path = (folder if number == 0 else folder / test) / "metrics.json"
        found[test] = json.loads(path.read_text())["scores"] if path.is_file() else {}
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table of text: a line for each run and test."""
    head = ("arm", "seed", "trained", "seconds", "test", "loss", "reliance", "CIDEr", "exact", "VQA")
    names = (
        "reliance/right",
        "reliance/shuffled_gap",
        "generation/cider",
        "generation/exact_match",
        "generation/vqa_accuracy",
    )
    rows = [head]
    for r in results:
        for test in (name for name, value in r.items() if isinstance(value, dict)):
            scores = [r[test].get(name) for name in names]
            figures = ("-" if x is None else f"{x:.3f}" for x in scores)
            cost = (f"{r['trained_parameters']:,}", f"{r['seconds']:.0f}")
            rows.append((r["arm"], str(r["seed"]), *cost, test, *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def need(path: Path, part: str) -> Path:
    """Returns the path.

    Raises:
        Failed: it is not there; the text names the part that makes it.
    """
    if not path.exists():
        raise Failed(f"{shown(path)} is missing. Run the part `{part}` first: make open-{part}")
    return path


PARTS: dict[str, Callable[[Settings], None]] = {
    "fetch": fetch,
    "import": import_,
    "data": data,
    "stage1": stage1,
    "arms": arms,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "tune": tune,
}
ASKED_FOR = ("tune",)  # what only runs by its name


def parse(arguments: Sequence[str] | None = None) -> tuple[list[str], Settings]:
    """Reads the command line and the environment; an argument wins over a variable."""
    environment = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument(
        "--data", default=environment("DATA") or HERE / "data", type=Path, help="DATA; default %(default)s"
    )
    parser.add_argument(
        "--runs", default=environment("RUNS") or ROOT / "runs/open", type=Path, help="RUNS; default runs/open"
    )
    parser.add_argument("--arms", default=environment("ARMS") or ",".join(ARMS), help="ARMS; default %(default)s")
    parser.add_argument(
        "--seeds", default=environment("SEEDS") or "0", help="SEEDS, such as 0,1,2; default %(default)s"
    )
    parser.add_argument(
        "--steps", default=environment("STEPS") or None, type=int, help="STEPS; default those of the gin files"
    )
    parser.add_argument(
        "--limit",
        default=environment("LIMIT") or 96,
        type=int,
        help="LIMIT: most rows of a test, 0 for all; default %(default)s",
    )
    parser.add_argument(
        "--train_on", default=environment("TRAIN_ON") or "captions", choices=SETS, help="TRAIN_ON; default %(default)s"
    )
    parser.add_argument("--gin", action="append", default=[], metavar="NAME=VALUE", help="a setting of each training")
    args = parser.parse_args(arguments)
    chosen_arms = tuple(name for name in args.arms.split(",") if name)
    for what, names, known in (("part", args.parts, PARTS), ("arm", chosen_arms, (*ARMS, *MORE_ARMS))):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no {what} is called {', '.join(unknown)}; expected some of {', '.join(known)}")
    if (args.steps is not None and args.steps < 1) or args.limit < 0:
        parser.error(f"expected --steps of 1 or more and --limit of 0 or more; found {args.steps} and {args.limit}")
    try:
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
    except ValueError:
        parser.error(f"--seeds is {args.seeds!r}; expected numbers, such as 0,1,2")
    parts = [part for part in PARTS if (part in args.parts if args.parts else part not in ASKED_FOR)]
    given = (args.steps, args.limit, args.train_on, tuple(args.gin))
    return parts, Settings(args.data, args.runs, chosen_arms, seeds, *given)


def main() -> int:
    parts, settings = parse()
    start = time.perf_counter()
    for part in parts:
        minutes, seconds = divmod(int(time.perf_counter() - start), 60)
        print(f"\n[{minutes:2d}:{seconds:02d}] {part}", flush=True)
        try:
            PARTS[part](settings)
        except Failed as e:
            print(f"run.py: error: {e}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nrun.py: stopped. Run this again to go on.", file=sys.stderr)
            return 130
    print(f"\ndone in {(time.perf_counter() - start) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
