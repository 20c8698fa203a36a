"""Writes the predictions of a benchmark in its own format, with a side file that says how they came about."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

import vadapter
from vadapter.evaluation import captions, protocols

_MOST_PROMPTS = 5


def save(
    directory: str | epath.PathLike,
    protocol: protocols.Protocol,
    records: Sequence[protocols.Record],
    *,
    split: str = "test",
    settings: Mapping[str, Any] | None = None,
) -> tuple[epath.Path, epath.Path]:
    """Writes `<submission>.json` and `<submission>.meta.json`.

    Args:
        directory: made if it is not there.
        protocol: the benchmark's.
        records: one prediction for each id.
        split: for the file's name.
        settings: what the caller knows: `checkpoint`, `decoding`, `skipped` and whatever else. JSON-serialisable.

    Returns:
        The two paths.

    Raises:
        UserError: as `protocols.Protocol.submission`.
    """
    name, content = protocol.submission(records, split)
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    submission = folder / name
    submission.write_text(json.dumps(content, ensure_ascii=False))
    side = folder / f"{name.removesuffix('.json')}.meta.json"
    side.write_text(
        json.dumps(provenance(protocol, records, split, settings or {}), ensure_ascii=False, indent=2) + "\n"
    )
    return submission, side


def provenance(
    protocol: protocols.Protocol, records: Sequence[protocols.Record], split: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the predictions and scores depend on.

    Prompts are the distinct ones of the records, at most 5, and how many there are: those of questions differ by
    question.
    """
    prompts = list(dict.fromkeys(str(r["prompt"]) for r in records if r.get("prompt")))
    scorers = {"vadapter": vadapter.__version__}
    if protocol.answer_score is None:
        scorers |= captions.scorer_versions() | {"tokenizer": captions.best_tokenizer()}
    return {
        "benchmark": protocol.name,
        "split": split,
        "records": len(records),
        "skipped": 0,
        "prompts": prompts[:_MOST_PROMPTS],
        "distinct_prompts": len(prompts),
        "prediction": protocols.CLEANING[protocol.clean],
        "scorers": scorers,
        "vadapter": vadapter.__version__,
        "commit": git_commit(),
        **settings,
    }


def git_commit() -> str:
    """The commit of the checkout that vadapter runs from, `+` after it where files differ; empty outside of one."""
    root = Path(vadapter.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed.stdout.strip() else "")
