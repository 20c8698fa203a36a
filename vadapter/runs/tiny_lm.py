"""The tiny LM as it was before it became an adapter: its tokeniser, its prompt, its embedding table."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from etils import epath

from vadapter.base.errors import UserError
from vadapter.base.paths import resolve
from vadapter.data.rows import prompts
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.vocabulary import TextVocabulary
from vadapter.runs import description
from vadapter.runs.load import find_vocabulary
from vadapter.training import checkpoints
from vadapter.training.sources import Reference, rename

_TABLE = "decoder/embedder/embedding"


@dataclasses.dataclass(frozen=True)
class TinyLM:
    """What the hand-off has to know of the tiny LM beside what stands in the adapter.

    Attributes:
        folder: where it comes from.
        vocabulary: its tokeniser, with the prompt format of its training.
        template: the prompt.
    """

    folder: str
    vocabulary: TextVocabulary
    template: str

    @property
    def before(self) -> list[int]:
        """Ids that stand before the visual tokens: the start token and the prompt's first part."""
        return [max(self.vocabulary.bos_id or 0, 0), *self.vocabulary.head(prompts.split(self.template)[0])]

    @property
    def last(self) -> int:
        """Id after which the answer begins."""
        return [*self.before, *self.vocabulary.tail(prompts.split(self.template)[1])][-1]


def find(source: str, template: str = "caption") -> TinyLM:
    """Finds tokeniser and prompt of a tiny LM.

    Args:
        source: MODEL_DIR of stage 1, or an imported folder.
        template: the prompt, for an imported folder: a name in data/prompts or a template.

    Raises:
        UserError: the folder is neither, or its vocabulary is missing.
    """
    if (epath.Path(source) / description.FILE).exists():
        text = description.load(source).text
        if text is None or not text.prompts:
            raise UserError(f"{source} was trained without text; expected the run of a stage 1, or a language model.")
        return TinyLM(source, find_vocabulary(text, source), caption_template(text.prompts))
    if not epath.Path(source).exists():
        raise UserError(f"Handoff.source: {source} is not there. Give the MODEL_DIR of stage 1, or an imported folder.")
    return TinyLM(source, vocabularies.load_vocabulary(source), prompts.resolve(template, question=False))


def prompt_length(source: str, template: str = "caption") -> int:
    """Returns how many tokens stood before the visual tokens in stage 1: what `LMAdapterConfig.num_prefix` should be.

    Args:
        source: see `find`.
        template: see `find`.

    Raises:
        UserError: as `find`.
    """
    try:
        return len(find(source, template).before)
    except UserError as e:
        raise UserError(f"{e} The length of its prompt is asked for; NUM_PREFIX can give it as a number.") from e


def caption_template(templates: Mapping[str, str]) -> str:
    """Returns the template of captions, or the first that there is, without examples."""
    template = templates.get("caption") or next(iter(templates.values()))
    return prompts.without_examples(template)


def read_table(folder: str) -> np.ndarray:
    """Reads the embedding table of a tiny LM, f32 [V, D].

    Args:
        folder: of an import, or of a run, which may have the table from one of its sources.

    Raises:
        UserError: there is no table.
    """
    model_dir, step = checkpoints.locate(folder)
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        stored, run = checkpointer.shapes(step), checkpointer.run(step)
        if _TABLE in stored:
            return np.asarray(checkpointer.read(step, {_TABLE: stored[_TABLE]})[_TABLE], np.float32)
    for reference in (Reference.from_json(r) for r in reversed(run.get("sources", []))):
        place, step = checkpoints.locate(resolve(reference.path, model_dir), reference.step)
        with checkpoints.Checkpointer(place, read_only=True) as checkpointer:
            stored = checkpointer.shapes(step)
            taken = rename({path: path for path in stored}, reference.rules, place)
            if old := taken.get(_TABLE):
                return np.asarray(checkpointer.read(step, {old: stored[old]})[old], np.float32)
    raise UserError(
        f"{folder} has no embedding table ({_TABLE}); expected the MODEL_DIR of a stage 1, or an imported language "
        "model. Correct Handoff.source."
    )
