"""What a run needs for the loss that the tiny LM in the adapter keeps from stage 1 (`ObjectiveConfig.tiny_loss`).

In stage 2 rows are in the ids of the large LM, which the tiny one cannot read. So each is written once more, in the ids
that it read in stage 1 (`vadapter.data.rows.tiny_text`).
"""

from typing import TYPE_CHECKING, Any

import jax

from vadapter.base.batch import Text
from vadapter.base.errors import UserError
from vadapter.data import mixture_description
from vadapter.data.rows import prompts
from vadapter.data.rows.preprocessors import CHAT
from vadapter.data.rows.sizes import Layout
from vadapter.data.rows.tiny_text import TinyWriter
from vadapter.models.vlm import VLMConfig
from vadapter.runs import tiny_lm

if TYPE_CHECKING:
    from vadapter.runs.experiment import Experiment


def writer(experiment: "Experiment") -> TinyWriter | None:
    """Returns what writes the rows of an experiment for its tiny LM; None where it asks for no such loss.

    Raises:
        UserError: as `check`; the source has no tokeniser, or that of another LM; or stage 1 asked by another prompt.
    """
    if not experiment.objective.tiny_loss:
        return None
    model = check(experiment)
    adapter: Any = model.adapter
    tiny = tiny_lm.find(experiment.tiny_lm or "", setting="Experiment.tiny_lm")
    if tiny.vocabulary.rows > adapter.lm.vocab_size:
        raise UserError(
            f"{tiny.vocabulary} has ids up to {tiny.vocabulary.rows - 1}; the table of the tiny LM in the adapter has "
            f"{adapter.lm.vocab_size} rows. Set Experiment.tiny_lm to the stage 1 (STAGE1_RUN) that trained this LM."
        )
    asked = mixture_description.describe(experiment.data.mixture).get("prompts") or {}
    for kind, template in asked.items():
        known = tiny.prompts.get(kind, template)
        if CHAT not in (known, template) and prompts.without_examples(known) != prompts.without_examples(template):
            raise UserError(
                f"In stage 1 ({tiny.folder}) the prompt of {kind} was {known!r}; the data of this run ask by "
                f"{template!r}, so the tiny LM would not keep the loss of stage 1. Give the task stage 1's prompt "
                "(such as jsonl_task.caption_prompt), or set ObjectiveConfig.tiny_loss to 0."
            )
    return TinyWriter(tiny.vocabulary, {frames: model.num_tiny_tokens(frames) for frames in {1, model.num_frames}})


def check(experiment: "Experiment") -> VLMConfig:
    """Returns the model of an experiment with such a loss.

    Raises:
        UserError: its adapter has no tiny LM with words, its rows are packed, or it does not say where stage 1 is.
    """
    model = experiment.model
    if not isinstance(model, VLMConfig):
        raise UserError(
            f"ObjectiveConfig.tiny_loss is of the tiny LM in the adapter of a VLMConfig; the model is a "
            f"{type(model).__name__}. Leave it at 0."
        )
    model.num_tiny_tokens(1)
    if experiment.data.packing is not None:
        raise UserError(
            "ObjectiveConfig.tiny_loss does not go with packed rows: the tiny LM reads each sample in its own row. "
            "Take LoaderConfig.packing out, or set tiny_loss to 0."
        )
    if not experiment.tiny_lm:
        raise UserError(
            "ObjectiveConfig.tiny_loss needs the tokeniser of stage 1. Set Experiment.tiny_lm to its MODEL_DIR "
            "(models/adapters/words_supervised.gin does so), or tiny_loss to 0."
        )
    return model


def example(experiment: "Experiment", batch: Any) -> Any:
    """Returns the shapes of a batch with the text of the tiny LM, where the experiment asks for it.

    Args:
        experiment: the settings.
        batch: shapes of the batch without it.

    Raises:
        UserError: as `check`.
    """
    if not experiment.objective.tiny_loss:
        return batch
    rows, media, frames = batch.media.shape[:3]
    lengths = experiment.data.lengths
    slots = Layout(lengths, media, check(experiment).num_tiny_tokens(frames)).row_length

    def shape(size: int, dtype: str = "int32") -> Any:
        return jax.ShapeDtypeStruct((rows, size), dtype)

    row, target, weights = shape(slots), shape(lengths["targets"]), shape(lengths["targets"], "float32")
    return batch.replace(tiny=Text(row, row, row, row, target, target, weights))
