"""What a mixture does to text and pictures, for the record of a trained model."""

from typing import Any

from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.preprocessors import Chat
from vadapter.data.seqio_tasks import tasks_of


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
    chats = [task.records for task in tasks if any(isinstance(step, Chat) for step in task.ours)]
    found: dict[str, Any] = {
        "resize": tasks[0].records.resize,
        "max_tiles": max((records.max_tiles for records in chats), default=0),
        "clips": {records.media for records in chats} - {"none"} == {"video"},
        "preprocessors": {task.name: [step.describe() for step in task.ours] for task in tasks},
    }
    vocabulary = tasks[0].rows.vocabulary
    if vocabulary is None:
        return found
    templates: dict[str, str] = {}
    for task in tasks:
        for step in task.ours:
            templates = {**step.templates(task.records.media), **templates}  # the first task's
    return found | {
        "vocabulary": vocabulary.path,
        "sha256": vocabularies.sha256(vocabulary.path),
        "prompt_format": vocabulary.format.name,
        "prompts": templates,
    }


def contents(mixture: str, split: str) -> dict[str, Any]:
    """Returns what tells the records of a split from others, by task, wherever they lie.

    Returns:
        Of each task its `records`, and `sha256`, see `RandomAccessSource.fingerprint`; "" where its source has none.
    """
    tasks = [task for task in tasks_of(mixture) if task.num_examples(split)]
    return {t.name: {"records": t.num_examples(split), "sha256": t.records.fingerprint(split)} for t in tasks}
