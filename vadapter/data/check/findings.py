"""What `preflight` found: figures of each task, and the problems that follow from them."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vadapter.data.rows.converters import Token

MAX_NAMES = 1000  # of a problem, in the report


@dataclasses.dataclass
class Lengths:
    """Numbers of tokens of the texts of a task.

    Attributes:
        room: tokens that a row has for them.
        counts: how many texts have so many tokens, before anything is cut.
    """

    room: int
    counts: Counter[int] = dataclasses.field(default_factory=Counter)

    def quantile(self, share: float) -> int:
        """Returns the smallest length that at least `share` of the texts do not exceed; 0 without texts."""
        need, seen = share * sum(self.counts.values()), 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen >= need:
                return length
        return 0

    def bins(self, most: int = 32) -> list[tuple[int, int, int]]:
        """Returns (first length, last length, texts) of at most `most` equal ranges, from 0 to beyond the room."""
        if not self.counts:
            return []
        high = max(self.room + 1, *self.counts)
        width = high // most + 1
        inside = [0] * (high // width + 1)
        for length, count in self.counts.items():
            inside[length // width] += count
        return [(i * width, (i + 1) * width - 1, count) for i, count in enumerate(inside)]

    def to_json(self) -> dict[str, Any]:
        """Returns room, quantiles and the counts themselves."""
        quantiles = {"median": self.quantile(0.5), "p95": self.quantile(0.95), "longest": self.quantile(1.0)}
        return {"room": self.room, **quantiles, "counts": {str(k): self.counts[k] for k in sorted(self.counts)}}


@dataclasses.dataclass
class TaskFigures:
    """What was found in one split of one task.

    Attributes:
        mixture, split, task: which.
        training: whether the run trains on it.
        media: none, image or video.
        records: in the split.
        checked: of them, looked at.
        rate: the task's share in the mixture, up to a factor.
        visual_tokens: slots that every prompt must have for visual tokens.
        prompts: lengths of prompts with the bos slot, without visual tokens.
        targets: lengths of targets with their end token.
        whole_targets: records whose target has text and is not cut.
        distinct_media: different media, told by their bytes.
        found: names of records by what is wrong with them, keys of `PROBLEMS`.
        left_out: records that the source found unusable as it was opened; they are not among `records`.
        description: what its files were taken for; "" where there is nothing to say.
        resize: how its pictures become square.
    """

    mixture: str
    split: str
    task: str
    training: bool
    media: str
    records: int
    rate: float
    visual_tokens: int
    prompts: Lengths
    targets: Lengths
    checked: int = 0
    whole_targets: int = 0
    distinct_media: int = 0
    left_out: int = 0
    description: str = ""
    resize: str = ""
    found: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Notes that something is wrong with a record."""
        self.found.setdefault(kind, []).append(name)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures; `found` as numbers, because the problems have the names."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lengths = {"prompts": self.prompts.to_json(), "targets": self.targets.to_json()}
        return plain | lengths | {"found": {kind: len(names) for kind, names in self.found.items()}}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is wrong with the data.

    Attributes:
        kind: key of `PROBLEMS`, or `empty_split`, `overlap` or `opening`.
        spoils: whether a run would be spoilt by it.
        where: mixture and split.
        text: what is wrong.
        advice: what to do.
        count: records it concerns.
        total: records looked at.
        names: of the records, the first `MAX_NAMES`.
    """

    kind: str
    spoils: bool
    where: str
    text: str
    advice: str
    count: int = 0
    total: int = 0
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a problem's kind means to a user."""

    text: str
    advice: str


PROBLEMS: Mapping[str, Kind] = {
    "corrupt": Kind("media or records that cannot be read", "Repair or remove them; in training they carry no loss."),
    "misfit": Kind(
        "prompts without room for exactly the adapter's visual tokens",
        "Give every prompt one <media>, and the adapter the frames that it was made for.",
    ),
    "outside_table": Kind(
        "texts with ids that the decoder's table lacks",
        "Give the tokenizer that belongs to the decoder (VOCABULARY).",
    ),
    "empty_target": Kind("targets without any text", "Remove the records, or give them a caption or an answer."),
    "empty_question": Kind("questions without any text", "Remove the records, or give them a question."),
    "cut_target": Kind(
        "targets that are cut: the model never learns to end them",
        "Raise TASK_FEATURE_LENGTHS[\"targets\"], or leave them out: LoaderConfig.long_text = 'drop'.",
    ),
    "cut_prompt": Kind("prompts that are cut", 'Raise TASK_FEATURE_LENGTHS["inputs"], or shorten the prompt.'),
    "cut_turns": Kind(
        "conversations that are cut behind an answer",
        "Raise TASK_FEATURE_LENGTHS or chat_task.max_media to keep their later turns.",
    ),
    "repeated": Kind("records with the medium and the text of an earlier one", "Remove them: they count double."),
    "copies": Kind(
        "media with the bytes of an earlier one of another name",
        "Keep one file of each, so that splits by file name keep them together.",
    ),
}


def problems_of(tasks: Sequence[TaskFigures], max_bad_share: float, long_text: str) -> list[Problem]:
    """Returns the problems of the tasks of one split of a mixture.

    Args:
        tasks: what was found.
        max_bad_share: share of unreadable records at which the run stops, see `LoaderConfig`.
        long_text: what becomes of text that does not fit, see `LoaderConfig`.
    """
    where, total = f"{tasks[0].mixture}/{tasks[0].split}", sum(task.checked for task in tasks)
    rates = sum(task.rate for task in tasks if task.checked)
    bad = sum(t.rate * len(t.found.get("corrupt", ())) / t.checked for t in tasks if t.checked) / max(rates, 1e-9)
    whole = sum(task.whole_targets for task in tasks)
    problems = []
    for kind, meaning in PROBLEMS.items():
        names = [name for task in tasks for name in task.found.get(kind, ())]
        if not names:
            continue
        cut = kind in ("cut_target", "cut_prompt", "cut_turns")
        text = meaning.text
        spoils = kind in ("misfit", "outside_table") or (cut and long_text == "error")
        if kind == "corrupt":
            spoils = bad > max_bad_share
            text += f" ({bad:.1%} of what the run reads; it stops above {max_bad_share:.1%})"
        if cut and long_text == "error":
            text += "; long_text='error' stops the run at the first"
        if cut and long_text == "drop":
            text += "; long_text='drop' leaves these records out"
        if kind in ("empty_target", "cut_target") and not whole:
            spoils, text = True, f"{text}; no target is whole"
        problems.append(_problem(kind, spoils, where, text, meaning.advice, names, total))
    return problems


def overlap(where: str, names: Iterable[str], total: int, training: str) -> Problem:
    """Returns the problem that media of an evaluation split are trained on. `names` are pairs of records."""
    text = f"media that the training split {training} has too: scores on them mean nothing"
    advice = "Remove them from one of the splits, or split by medium (jsonl_task.holdout does)."
    return _problem("overlap", True, where, text, advice, list(names), total)


def empty_split(where: str, splits: Iterable[str]) -> Problem:
    """Returns the problem that there are no records where the run looks for some."""
    text = f"no records; the splits that have some are {', '.join(splits) or '(none)'}"
    return Problem("empty_split", True, where, text, "Choose another split, or give the task records for it.")


def opening(messages: Sequence[str]) -> Problem:
    """Returns the problem that sources warned as they were opened."""
    advice = "Correct what is named; lines and records that were left out are in no batch."
    return _problem("opening", False, "sources", "warnings as the data were opened", advice, list(messages), 0)


def _problem(kind: str, spoils: bool, where: str, text: str, advice: str, names: Sequence[str], total: int) -> Problem:
    return Problem(kind, spoils, where, text, advice, len(names), total, tuple(names[:MAX_NAMES]))


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as the model gets it.

    Attributes:
        where: mixture, split and task.
        name: of the record.
        error: why it cannot be used, or "".
        picture: data URI of its media, None where it has none.
        pixels: height and frames of the media, as text.
        prompt, target: its tokens.
        references: all captions or answers of the record.
    """

    where: str
    name: str
    error: str
    picture: str | None
    pixels: str
    prompt: tuple[Token, ...]
    target: tuple[Token, ...]
    references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole result.

    Attributes:
        tasks: figures of each split of each task.
        problems: those that spoil a run first.
        examples: for the contact sheet.
        limit: most records of a split that were looked at; 0 is all.
    """

    tasks: tuple[TaskFigures, ...]
    problems: tuple[Problem, ...]
    examples: tuple[Example, ...]
    limit: int = 0

    @property
    def spoils(self) -> bool:
        """Whether something would spoil a run."""
        return any(problem.spoils for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Returns everything except the examples."""
        return {
            "ok": not self.spoils,
            "limit": self.limit,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "tasks": [task.to_json() for task in self.tasks],
        }
