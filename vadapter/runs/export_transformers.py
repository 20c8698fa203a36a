"""A trained model as a folder that transformers loads, without vadapter."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vadapter.base import folders, quantization, trees
from vadapter.base.errors import UserError
from vadapter.models.vlm import VLMConfig
from vadapter.runs import lora_merging
from vadapter.runs.load import load
from vadapter.runs.model import TrainedModel
from vadapter.sharing import parameters, transformers_folder


@dataclasses.dataclass(frozen=True)
class Written:
    """What an export wrote.

    Attributes:
        folder: where.
        parameters: how many.
    """

    folder: str
    parameters: int

    @property
    def how(self) -> str:
        """Says how it is loaded."""
        return (
            "AutoModelForImageTextToText and AutoProcessor load it with trust_remote_code=True: the folder has a "
            "modelling file."
        )


def export_transformers(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    step: int | str | None = None,
    ema: bool | None = None,
) -> Written:
    """Writes a run or a bundle with its backbones as a folder for transformers.

    LoRA is merged into the kernels beside it, and int8 kernels become floating ones. The tokenizer and the chat
    template are compared with the vocabulary of the training before anything is written.

    Args:
        path: as of `vadapter.load`.
        out: folder to write; must not be there.
        encoder: as of `vadapter.load`.
        decoder: as of `vadapter.load`.
        step: as of `vadapter.load`.
        ema: as of `vadapter.load`.

    Raises:
        UserError: as `vadapter.load`; a part is of a class of your own; the vocabulary cannot be written as a
            tokenizer.json; or there is something at `out`.
    """
    out = os.fspath(out)
    with folders.appearing(out) as partial:  # first: a name that is taken is told before the weights are read
        trained = load(path, encoder=encoder, decoder=decoder, step=step, ema=ema)
        model, params = plain(trained)
        vocabulary = trained.vocabulary
        if vocabulary is None:
            raise UserError(f"{trained.folder} holds a model that does not read and write text. Export another.")
        templates = {
            kind + ("_question" if asked else ""): trained_prompt(trained, asked, kind == "video")
            for kind in ("image", "video")
            for asked in (False, True)
        }
        text = transformers_folder.text_of(vocabulary, templates, model.num_frames > 1)
        dtype = str(np.dtype(model.decoder.dtype)) if model.decoder.dtype != "bfloat16" else "bfloat16"
        count = transformers_folder.write_weights(partial, parameters.torch_tensors(model, params))
        contents = {"config.json": transformers_folder.config(model, text, dtype)}
        contents |= transformers_folder.processor(model, trained.sizes, trained.description.resize)
        transformers_folder.write_json(partial, contents)
        transformers_folder.write_code(partial)
        for name, content in text.files.items():
            (partial / name).write_text(content, encoding="utf-8")
    return Written(out, count)


def trained_prompt(trained: TrainedModel, question: bool, video: bool) -> str:
    """Returns the template that `infer` asks with."""
    from vadapter.data.rows import prompts

    return prompts.resolve(trained.prompt(question, video), question)


def plain(trained: TrainedModel) -> tuple[VLMConfig, dict[str, np.ndarray]]:
    """Returns a model's configuration and parameters, on the host, without LoRA and without int8.

    Raises:
        UserError: as `transformers_folder.check`.
    """
    model: Any = trained.description.model
    transformers_folder.check(model, trained.folder)
    flat = dict(_on_host(trained))
    if lora_merging.beside(flat):
        flat = lora_merging.merged(model, flat)
        model = lora_merging.without_lora(model)
    return model, flat


def _on_host(trained: TrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    dtype = trained.description.model.decoder.dtype
    for path, x in trees.flatten(trained.params).items():
        # As the layers see it: turned back into the dtype of the computation.
        floating = quantization.dequantize(x, dtype) if quantization.is_quantized(x) else x
        yield path, np.asarray(jax.device_get(floating))
