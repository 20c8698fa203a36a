"""What a mixture does to text and pictures, for the record of a trained model."""

from typing import Any

import seqio

from vadapter.data.rows import prompts
from vadapter.data.rows import vocabulary as vocabularies

# Factories of `preprocessors` that ask something, and their own prompts.
_ASKING = {"caption": "caption", "question": "image_question"}


def describe(mixture: str) -> dict[str, Any]:
    """Returns settings of the tasks of a registered mixture.

    Returns:
        `resize` of the pictures, and where the tasks have text: `vocabulary`, the path that it was opened with, empty
        for the one that ships with vadapter; `sha256` of it; `prompt_format`; and `prompts`, the templates of
        `caption`, `image_question` and `video_question`, as far as a task has them.
    """
    tasks = sorted(seqio.get_subtasks(seqio.get_mixture_or_task(mixture)), key=lambda task: task.name)
    found: dict[str, Any] = {"resize": getattr(tasks[0].source, "resize", "stretch")}
    features = tasks[0].output_features
    if "targets" not in features:
        return found
    vocabulary: Any = features["targets"].vocabulary
    found |= {
        "vocabulary": vocabulary.path,
        "sha256": vocabularies.sha256(vocabulary.path),
        "prompt_format": vocabulary.format.name,
        "prompts": {},
    }
    for task in tasks:
        for step in task.preprocessors:
            if (asking := step.__name__) in _ASKING:
                question = asking == "question"
                name = f"{getattr(task.output_features['media'], 'kind', 'image')}_question" if question else "caption"
                template = prompts.resolve(step.settings.get("prompt", _ASKING[asking]), question)
                found["prompts"].setdefault(name, template)
    return found
