"""Whether a run that goes on is still the run that was begun: what its settings were, and what they are now.

A run records its settings in `model.json`, and in each checkpoint what fixes its data. What would make two runs of one
is refused; what may change between two sessions, such as the learning rate, is said. Runs of older versions that did
not record a setting go on without a word on it.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from vadapter.base import files
from vadapter.base.errors import UserError
from vadapter.models.serialization import to_json
from vadapter.runs import description
from vadapter.runs.description import Description
from vadapter.training import best, checkpoints, initialize
from vadapter.training.config import TrainConfig
from vadapter.training.optimizers import OptimizerConfig

# Fields of models that change speed and memory, not what is computed.
_FREE = ("remat", "attention_impl")
# `description.check_same_pictures` tells which of these differ in what they do.
_PICTURES = ("resize", "position_grid", "position_resampling")
_ABSENT: Any = object()
_DATA = {"mixture": "the mixture", "split": "the split", "seed": "the seed of the data", "batch_size": "the batch size"}
_DATA |= {"tiny_text": "the tiny LM's tokeniser (Experiment.tiny_lm) and prompt format"}


@dataclasses.dataclass
class Changes:
    """Settings that a run is given now and was not begun with, each as text.

    Attributes:
        other_run: those that would make another run of it.
        allowed: those that may change between two sessions.
    """

    other_run: list[str] = dataclasses.field(default_factory=list)
    allowed: list[str] = dataclasses.field(default_factory=list)


def check(
    model_dir: str,
    now: Description,
    data: Mapping[str, Any],
    train: TrainConfig,
    say: Callable[[str], None] = print,
    *,
    back_to: int | None = None,
) -> bool:
    """Compares a run that has a checkpoint with what it is given now. Without a checkpoint it does nothing.

    Args:
        model_dir: of the run.
        now: of the settings that it is given.
        data: what fixes the data that it is given, see `experiment.data_info`.
        train: settings of the loop, as given now.
        say: is given a line for each setting that changed and may.
        back_to: an older checkpoint that it is told to go back to.

    Returns:
        Whether the run is finished, so that nothing is left to be done.

    Raises:
        UserError: the result would not be that of one run; or the run is finished, and would not be trained with the
            settings that it is given.
    """
    chosen = initialize.choose(model_dir, back_to, lambda line: None)  # `begin` says it
    if chosen is None:
        return False
    step = chosen[0]
    former = _description(model_dir, say)
    if former is not None:
        description.check_same_pictures(model_dir, now)
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        run = checkpointer.run(step)
    finished = files.read_record(epath.Path(model_dir) / "done.json").get("step") == step and (
        step >= train.steps or best.has_ended(model_dir, step, train.best)
    )
    changes = compare(run, former, now, data)
    if finished and (changes.other_run or changes.allowed):
        raise UserError(
            f"The run {model_dir} is finished, at step {step}, with other settings than it is given now: "
            f"{'; '.join(changes.other_run + changes.allowed)}. Nothing was trained or written. Give another MODEL_DIR "
            "to train with these, or the former settings."
        )
    if changes.other_run:
        raise UserError(
            f"The run {model_dir} stands at step {step}, and going on with what it is given now would not give the "
            f"result of one run: {'; '.join(changes.other_run)}. Give it the former settings, or start a new run in "
            "another MODEL_DIR."
        )
    for change in changes.allowed:
        say(f"{model_dir} goes on from step {step} with another setting: {change}.")
    return finished


def compare(run: Mapping[str, Any], former: Description | None, now: Description, data: Mapping[str, Any]) -> Changes:
    """Returns what changed.

    Args:
        run: JSON object of the run's checkpoint.
        former: what the run recorded of its settings; None where it did not.
        now: the settings that it is given.
        data: likewise, see `experiment.data_info`.
    """
    changes = Changes()
    changes.other_run += _data_changes(run.get("data", {}), json.loads(json.dumps(dict(data))))
    changes.other_run += _of({"frozen_dtype": run.get("frozen_dtype", _ABSENT)}, {"frozen_dtype": now.frozen_dtype})
    if former is None:
        return changes
    for path, old, new in _differences(to_json(former.model), to_json(now.model)):
        name = path.rpartition(".")[2]
        if name not in (*_FREE, *_PICTURES):
            kind = changes.allowed if name == "dtype" else changes.other_run
            kind.append(_line(f"model.{path}", old, new))
    changes.other_run += _text_changes(former, now)
    old, new = dict(former.training), json.loads(json.dumps(dict(now.training)))
    changes.other_run += _of(old, new, {"seed": "the seed", "preprocessors": "how records become text"})
    changes.other_run += _of(old, new, {"trainable": "what is trained", "ema_decay": "TrainConfig.ema_decay"})
    changes.allowed += _of(old, new, {"steps": "the number of steps", "use_ema": "TrainConfig.use_ema"})
    changes.allowed += _nested(old, new, "objective") + _of(old, new, {"best": "how the best checkpoint is chosen"})
    changes.allowed += _evaluation_changes(old, new)
    if "optimizer" in old:
        unset = dict.fromkeys(field.name for field in dataclasses.fields(OptimizerConfig))
        before, after = ({**unset, **dict(settings["optimizer"])} for settings in (old, new))
        changes.allowed += [_line(f"OptimizerConfig.{path}", a, b) for path, a, b in _differences(before, after)]
    changes.other_run = list(dict.fromkeys(changes.other_run))  # lengths are recorded twice
    return changes


def _description(model_dir: str, say: Callable[[str], None]) -> Description | None:
    file = epath.Path(model_dir) / description.FILE
    if not file.exists():
        return None
    if files.read_json(file) is None:
        say(f"{file} was cut or is no JSON, so settings are not compared with it. It will be written anew.")
        return None
    return description.load(model_dir)


def _data_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = _of(old, new, _DATA)
    before, after = old.get("packing"), new.get("packing")
    if "lengths" in old and before != after:  # a record without lengths is of no data set
        found.append(_line("the packing of samples into rows", before, after))
    if "lengths" in old:
        found += [_line(f"the length of {p}", a, b) for p, a, b in _differences(old["lengths"], new.get("lengths", {}))]
    if "contents" not in old or "contents" not in new:
        return found
    before, after = old["contents"], new["contents"]
    for task in sorted(before.keys() | after.keys()):
        was, is_now = before.get(task), after.get(task)
        if was is None or is_now is None:
            found.append(f"the data {'lost' if is_now is None else 'gained'} the records of {task}")
        elif was["records"] != is_now["records"]:
            found.append(_line(f"the number of records of {task}", was["records"], is_now["records"]))
        elif was["sha256"] and is_now["sha256"] and was["sha256"] != is_now["sha256"]:
            found.append(f"the contents of the data {task}, {was['records']} records then and now, differ")
    return found


def _text_changes(former: Description, now: Description) -> list[str]:
    old, new = former.text, now.text
    if old is None or new is None:
        return [] if old is new else ["whether the model reads text"]
    found = [_line(f"the length of {p}", a, b) for p, a, b in _differences(dict(old.lengths), dict(new.lengths))]
    if old.sha256 != new.sha256:
        found.append(f"the vocabulary was another file, sha256 {old.sha256}")
    return found + _of(dataclasses.asdict(old), dataclasses.asdict(new), {"prompt_format": "the prompt format"})


def _evaluation_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if "evaluations" not in old:
        return []
    before, after = list(old["evaluations"]), list(new["evaluations"])
    names = [_line("the evaluations", before, after)] if sorted(before) != sorted(after) else []
    return names + _nested(old, new, "evaluations")


def _of(old: Mapping[str, Any], new: Mapping[str, Any], named: Mapping[str, str] | None = None) -> list[str]:
    """The changes of some values, by their key or a name in plain words, as far as both sides have them."""
    named = named or {key: key for key in new}
    return [
        _line(name, old[key], new[key])
        for key, name in named.items()
        if old.get(key, _ABSENT) is not _ABSENT and key in new and old[key] != new[key]
    ]


def _nested(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> list[str]:
    return [_line(f"{key}.{path}", a, b) for path, a, b in _differences(old.get(key, {}), new.get(key, {}))]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, old value, new value) of what differs; of mappings, the keys that both have."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [key for key in old if key in new]:
            yield from _differences(old[key], new[key], f"{path}.{key}" if path else str(key))
    elif _plain(old) != _plain(new):
        yield path, old, new


def _plain(value: Any) -> Any:
    return None if value in ((), []) else list(value) if isinstance(value, tuple) else value


def _line(name: str, old: Any, new: Any) -> str:
    return f"{name} was {_short(old)} and is now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
