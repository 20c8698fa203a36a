"""What a card tells of a run beside its settings: the published models it is made of, and the figures it reached."""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from vadapter.base import files
from vadapter.base.errors import UserError
from vadapter.base.paths import resolve
from vadapter.training import checkpoints
from vadapter.training.sources import Reference

_IMPORT = "import.json"
_DEPTH = 8  # runs behind a run


def gather(model_dir: str, step: int) -> dict[str, Any]:
    """Returns what is known, JSON-serialisable: how the training ended, `made_from` and `figures`.

    Args:
        model_dir: of the run.
        step: the checkpoint that is told of; the training is told of if it ended there.
    """
    folder = epath.Path(model_dir)
    done = files.read_record(folder / "done.json")
    outcome = {key: done[key] for key in ("metrics", "evals", "seconds")} if done.get("step") == step else {}
    found = {record["sha256"]: record for record in _made_from(model_dir, step, _DEPTH)}
    return {**outcome, "made_from": list(found.values()), "figures": list(_figures(folder, step))}


def _made_from(model_dir: str, step: int, depth: int) -> Iterator[dict[str, str]]:
    """Imported models, and runs that began from nothing, by way of all runs between."""
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        references = [Reference.from_json(record) for record in checkpointer.run(step)["sources"]]
    for reference in references:
        folder = epath.Path(resolve(reference.path, model_dir))
        same = {"name": folder.name, "sha256": reference.sha256}
        record = files.read_record(folder / _IMPORT)
        if record:
            yield {**same, **_imported(record)}
        else:
            yield from _before(str(folder), reference.step, depth - 1) or [same]


def _before(folder: str, step: int, depth: int) -> list[dict[str, str]]:
    """The same of a run that another began with; nothing where it began from nothing, or is gone."""
    if depth < 0:
        return []
    try:
        return list(_made_from(folder, step, depth))
    except UserError:
        return []


def _imported(record: Mapping[str, Any]) -> dict[str, str]:
    source = record.get("source")
    facts = {**_object(source), "family": record.get("family")}
    kept = ("name", "hub", "commit", "license", "family")
    return {name: facts[name] for name in kept if isinstance(facts.get(name), str)}


def _figures(folder: epath.Path, step: int) -> Iterator[dict[str, Any]]:
    """Scores that `vadapter eval` wrote of this checkpoint, with their intervals."""
    for path in [folder / "metrics.json", *sorted(folder.glob("*/metrics.json"))]:
        content = files.read_record(path)
        if not str(content.get("checkpoint", "")).endswith(f" at step {step}"):
            continue
        scores, intervals, evaluations = (_object(content.get(k)) for k in ("scores", "intervals", "evaluations"))
        for name, score in scores.items():
            if isinstance(score, int | float):
                facts = _object(evaluations.get(name.split("/")[0]))
                told = {key: facts[key] for key in ("data", "split", "records") if key in facts}
                whole = name if path.parent == folder else f"{path.parent.name}: {name}"
                yield {"name": whole, "score": score, "interval": intervals.get(name), **told}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
