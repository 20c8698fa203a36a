"""Keeps what a loop of one's own has trained as a run that `load`, `export` and the commands can read."""

import contextlib
import os
from collections.abc import Mapping, Sequence

import jax

from vadapter.base.errors import UserError
from vadapter.base.paths import absolute, relative
from vadapter.data.rows import formats
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.runs import description, lock
from vadapter.runs import folder as folders
from vadapter.runs.batches import for_model
from vadapter.runs.description import Description, Text
from vadapter.training.checkpoints import Checkpointer
from vadapter.training.program import Program
from vadapter.training.sources import Reference
from vadapter.training.state import TrainState


def save(
    model_dir: str | os.PathLike[str],
    program: Program,
    state: TrainState,
    references: Sequence[Reference] = (),
    *,
    vocabulary: str,
    lengths: Mapping[str, int] | None = None,
    prompts: Mapping[str, str] | None = None,
    prompt_format: str = formats.PLAIN,
    resize: str | None = None,
) -> None:
    """Writes a checkpoint and `model.json`.

    Args:
        model_dir: folder of the run.
        program: of the step.
        state: after the last step.
        references: what the run took from weights, as `initial_params` gave it.
        vocabulary: path of the tokeniser, or of the imported folder that has it; `scenes` is the shipped one.
        lengths: `inputs` and `targets` of the batches; default 64 each, as `make_batch` has it.
        prompts: templates of `caption`, `image_question` and `video_question` that it was trained on, where they are
            not the shipped ones.
        prompt_format: how prompts become rows: `plain`, `chat` or a name of `formats.FORMATS`.
        resize: how pictures became square, see `resizing.parse`; default the encoder's way.

    Raises:
        UserError: a frozen parameter is in none of the references, so that the run could not be read again; or the
            vocabulary cannot be read; or the folder cannot be written to, or another process trains in it.
    """
    folders.check(model_dir, "model_dir")
    folder = os.fspath(model_dir)
    frozen = len(program.shapes) - len(program.storage.trained)
    if sum(reference.frozen for reference in references) < frozen:
        raise UserError(
            f"{frozen} parameters are frozen and are not written into the run, so it must say where they are from; the "
            f"references have {sum(r.frozen for r in references)} of them. Give the references that initial_params "
            "gave, or train all parameters."
        )
    shipped = vocabulary in ("", vocabularies.SCENES)
    text = Text(
        vocabulary="" if shipped else relative(absolute(vocabulary), folder),
        sha256=vocabularies.sha256(vocabulary),
        lengths=dict(lengths or {"inputs": 64, "targets": 64}),
        prompts=dict(prompts or {}),
        prompt_format=prompt_format,
    )
    record = {
        "data": {},
        "sources": [reference.to_json() for reference in references],
        "trainable": list(program.trainable),
        "frozen_dtype": program.frozen_dtype,
    }
    config = program.model.config  # pyright: ignore[reportAttributeAccessIssue]
    training = {"steps": int(state.step), "trainable": list(program.trainable)}
    resize = resize or for_model(config).resize
    with lock.held(folder) if jax.process_index() == 0 else contextlib.nullcontext():
        with Checkpointer(folder) as checkpointer:
            checkpointer.save(state, record)
            checkpointer.finish()
        if jax.process_index() == 0:
            description.save(folder, Description(config, text, resize, program.frozen_dtype, training))
