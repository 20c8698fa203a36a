"""What a mixture does to text and pictures, for the record of a trained model."""

from collections.abc import Sequence
from typing import Any

from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.preprocessors import CHAT, Chat
from vadapter.data.rows.sizes import WHOLE, Views
from vadapter.data.seqio_tasks import Task, tasks_of


def describe(mixture: str) -> dict[str, Any]:
    """Returns settings of the tasks of a registered mixture.

    Returns:
        `resize` of the pictures; `max_tiles`, the most that follow an image of a conversation; `clips`, whether all
        images of conversations are clips that stand still, as their rows have room for videos; `preprocessors`, the
        names and settings of those of each task; and where the tasks
        have text: `vocabulary`, the path that it was opened with, empty for the one that ships with vadapter; `sha256`
        of it; `prompt_format`; and `prompts`, the templates of `caption`, `image_question` and `video_question`, as far
        as a task has them.
    """
    tasks = tasks_of(mixture)
    found: dict[str, Any] = {
        "resize": tasks[0].records.resize,
        **_of_chats(tasks),
        "preprocessors": {task.name: [step.describe() for step in task.ours] for task in tasks},
    }
    vocabulary = tasks[0].rows.vocabulary
    if vocabulary is None:
        return found
    templates: dict[str, str] = {}
    for task in sorted(tasks, key=_is_chat):
        for step in task.ours:
            templates = {**step.templates(task.records.media), **templates}  # the first task's, chats last
    return found | {
        "vocabulary": vocabulary.path,
        "sha256": vocabularies.sha256(vocabulary.path),
        "prompt_format": vocabulary.format.name,
        "prompts": templates,
    }


def views(mixture: str) -> Views:
    """Returns how a model that is trained on a mixture sees pictures that a prompt asks about."""
    tasks = tasks_of(mixture)
    seen = _of_chats(tasks)
    if not any(seen.values()):
        return WHOLE
    whole = {text for task in tasks for step in task.ours for text in step.templates(task.records.media).values()}
    return Views(**seen, whole=frozenset(whole - {CHAT}))


def _is_chat(task: Task) -> bool:
    return any(isinstance(step, Chat) for step in task.ours)


def _of_chats(tasks: Sequence[Task]) -> dict[str, Any]:
    """What the rows of conversations have in common."""
    chats = [task.records for task in tasks if _is_chat(task)]
    most = max((records.max_tiles for records in chats), default=0)
    return {"max_tiles": most, "clips": {records.media for records in chats} - {"none"} == {"video"}}


def contents(mixture: str, split: str) -> dict[str, Any]:
    """Returns what tells the records of a split from others, by task, wherever they lie.

    Returns:
        Of each task its `records`, and `sha256`, see `RandomAccessSource.fingerprint`; "" where its source has none.
    """
    tasks = [task for task in tasks_of(mixture) if task.num_examples(split)]
    return {t.name: {"records": t.num_examples(split), "sha256": t.records.fingerprint(split)} for t in tasks}
