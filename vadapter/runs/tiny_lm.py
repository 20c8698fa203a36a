"""The tiny LM as it was before it became an adapter: its tokeniser, its prompt, its embedding table."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from vadapter.base.errors import UserError
from vadapter.base.paths import resolve
from vadapter.data.rows import prompts
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.data.rows.text_vocabulary import TextVocabulary
from vadapter.runs import description
from vadapter.runs.load import find_vocabulary
from vadapter.training import checkpoints
from vadapter.training.sources import Reference, rename

_TABLE = "decoder/embedder/embedding"
PLANNED = "planned"
"""Stands for the source where a run is planned, and no stage 1 is there. Its prompt is then taken to be the shipped
one, as most tokenisers write it."""
_PLANNED_LENGTHS = {"prefix": 5, "suffix": 1}


@dataclasses.dataclass(frozen=True)
class TinyLM:
    """What the hand-off has to know of the tiny LM beside what stands in the adapter.

    Attributes:
        folder: where it comes from, the MODEL_DIR of a run or an imported folder.
        step: of the checkpoint there; None is the latest.
        vocabulary: its tokeniser, with the prompt format of its training.
        template: the prompt.
        prompts: all that it was asked by in stage 1, by their kind; see `description.Text`.
    """

    folder: str
    step: int | None
    vocabulary: TextVocabulary
    template: str
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def before(self) -> list[int]:
        """Ids that stand before the visual tokens: the start token and the prompt's first part."""
        return [self.vocabulary.bos_id or 0, *self.vocabulary.head(prompts.split(self.template)[0])]

    @property
    def after(self) -> list[int]:
        """Ids that stand between the visual tokens and the answer: the prompt's last part."""
        return list(self.vocabulary.tail(prompts.split(self.template)[1]))

    @property
    def last(self) -> int:
        """Id after which the answer begins."""
        return [*self.before, *self.after][-1]


def find(source: str, template: str = "caption", setting: str = "Handoff.source") -> TinyLM:
    """Finds tokeniser and prompt of a tiny LM.

    Args:
        source: MODEL_DIR of stage 1 or of a run on text alone, or one of its `checkpoint_<step>` folders; or an
            imported folder.
        template: the prompt, where no stage 1 had one: a name in data/prompts or a template.
        setting: that the source comes from, for messages.

    Raises:
        UserError: the folder is neither, or its vocabulary is missing.
    """
    if not epath.Path(source).exists():
        raise UserError(f"{setting}: {source} is not there. Give the MODEL_DIR of stage 1, or an imported folder.")
    folder, step = checkpoints.split(source)
    if not (epath.Path(folder) / description.FILE).exists():
        return TinyLM(folder, step, vocabularies.load_vocabulary(folder), prompts.resolve(template, question=False))
    text = description.load(folder).text
    if text is None:
        raise UserError(f"{folder} was trained without text; expected the run of a stage 1, or a language model.")
    # A run on text alone had no prompt: it is a language model, as an imported folder is.
    known = caption_template(text.prompts) if text.prompts else prompts.resolve(template, question=False)
    return TinyLM(folder, step, find_vocabulary(text, folder), known, text.prompts)


def prompt_length(source: str, template: str = "caption", run: str | None = None) -> int:
    """Returns how many tokens stood before the visual tokens in stage 1: what `LMAdapterConfig.num_prefix` should be.

    Args:
        source: see `find`.
        template: see `find`.
        run: MODEL_DIR of the stage 2; where it has begun, the answer is what it began with.

    Raises:
        UserError: as `find`.
    """
    return _length(source, template, run, "prefix", lambda tiny: tiny.before)


def prompt_rest(source: str, template: str = "caption", run: str | None = None) -> int:
    """Returns how many tokens stood after the visual tokens in stage 1, before the answer: what
    `LMAdapterConfig.num_suffix` should be.

    Args:
        source: see `find`.
        template: see `find`.
        run: MODEL_DIR of the stage 2; where it has begun, the answer is what it began with.

    Raises:
        UserError: as `find`.
    """
    return _length(source, template, run, "suffix", lambda tiny: tiny.after)


def _length(source: str, template: str, run: str | None, part: str, ids: Callable[[TinyLM], list[int]]) -> int:
    if source == PLANNED:
        return _PLANNED_LENGTHS[part]
    if run and (epath.Path(run) / description.FILE).exists():
        adapter = getattr(description.load(run).model, "adapter", None)
        if (begun := getattr(adapter, f"num_{part}", None)) is not None:
            return begun
    try:
        return len(ids(find(source, template)))
    except UserError as e:
        macro = f"NUM_{part.upper()}"
        raise UserError(f"{e} The length of its prompt is asked for; {macro} can give it as a number.") from e


def caption_template(templates: Mapping[str, str]) -> str:
    """Returns the template of captions, or the first that there is, without examples."""
    template = templates.get("caption") or next(iter(templates.values()))
    return prompts.without_examples(template)


def read_table(tiny: TinyLM) -> np.ndarray:
    """Reads the embedding table of a tiny LM, f32 [V, D]. A run may have it from one of its sources.

    Raises:
        UserError: there is no such checkpoint, or it has no table.
    """
    folder, step = checkpoints.locate(tiny.folder, tiny.step)
    with checkpoints.Checkpointer(folder, read_only=True) as checkpointer:
        stored, run = checkpointer.shapes(step), checkpointer.run(step)
        if _TABLE in stored:
            return np.asarray(checkpointer.read(step, {_TABLE: stored[_TABLE]})[_TABLE], np.float32)
    for reference in (Reference.from_json(r) for r in reversed(run.get("sources", []))):
        place, step = checkpoints.locate(resolve(reference.path, folder), reference.step)
        with checkpoints.Checkpointer(place, read_only=True) as checkpointer:
            stored = checkpointer.shapes(step)
            taken = rename({path: path for path in stored}, reference.rules, place)
            if old := taken.get(_TABLE):
                return np.asarray(checkpointer.read(step, {old: stored[old]})[old], np.float32)
    raise UserError(
        f"{folder} has no embedding table ({_TABLE}); expected the MODEL_DIR of a stage 1, or an imported language "
        "model. Correct Handoff.source."
    )
