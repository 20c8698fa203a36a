"""A trained model as a folder that transformers loads, without vadapter."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vadapter.base import folders, quantization, trees
from vadapter.base.errors import UserError
from vadapter.models.vlm import VLMConfig
from vadapter.runs import bundle as bundles
from vadapter.runs import card, card_facts, lora_merging
from vadapter.runs.description import Description
from vadapter.runs.load import load
from vadapter.runs.model import TrainedModel
from vadapter.sharing import llava, parameters, transformers_folder
from vadapter.sharing.transformers_folder import Text


@dataclasses.dataclass(frozen=True)
class Written:
    """What an export wrote.

    Attributes:
        folder: where.
        parameters: how many.
        files: names in the folder.
        layout: of the folder.
    """

    folder: str
    parameters: int
    files: tuple[str, ...]
    layout: str

    @property
    def how(self) -> str:
        """Says how it is loaded."""
        if self.layout == "llava":
            return "LlavaForConditionalGeneration and AutoProcessor of transformers 5.23 or newer load it."
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
    layout: Literal["vadapter", "llava"] = "vadapter",
    license: str | None = None,
    repository: str | None = None,
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
        layout: `vadapter`, with a modelling file that knows every model; or `llava`, which stock
            `LlavaForConditionalGeneration` loads, for what it can compute.
        license: as of `vadapter.export`; None takes that of the bundle.
        repository: as of `vadapter.export`.

    Raises:
        UserError: as `vadapter.load`; a part is of a class of your own; the vocabulary cannot be written as a
            tokenizer.json; there is something at `out`; or as `llava.check`.
    """
    out = os.fspath(out)
    with folders.appearing(out) as partial:  # first: a name that is taken is told before the weights are read
        trained = load(path, encoder=encoder, decoder=decoder, step=step, ema=ema)
        model, params = plain(trained)
        vocabulary = trained.vocabulary
        if vocabulary is None:
            raise UserError(f"{trained.folder} holds a model that does not read and write text. Export another.")
        resize, views = trained.description.resize, trained.description.views
        if layout == "llava":
            llava.check(model, resize, views.max_tiles, trained.folder)
        text = transformers_folder.text_of(vocabulary, templates_of(trained), model.num_frames > 1, views.whole)
        count = _write_model(partial, trained, model, params, text, layout)
        for name, content in (llava.files(model, text) if layout == "llava" else text.files).items():
            (partial / name).write_text(content, encoding="utf-8")
        sizes = Counter()
        for name, x in params.items():
            sizes[name.split("/")[0]] += x.size
        about = card.of_transformers(
            Path(out).name, _described(trained, license), sizes, trained.step, repository, layout
        )
        (partial / bundles.CARD).write_text(about, encoding="utf-8")
        files = tuple(sorted(os.listdir(partial)))
    return Written(out, count, files, layout)


def _write_model(
    folder: Path, trained: TrainedModel, model: VLMConfig, params: dict[str, np.ndarray], text: Text, layout: str
) -> int:
    """Writes weights and configurations, and the code that the layout needs. Returns the number of weights."""
    dtype, resize, views = str(model.decoder.dtype), trained.description.resize, trained.description.views
    if layout == "llava":
        rows = llava.rows(model, text)
        count = transformers_folder.write_weights(folder, llava.tensors(model, params, rows))
        contents = {"config.json": llava.config(model, text, dtype), **llava.processor(model, resize)}
    else:
        count = transformers_folder.write_weights(folder, parameters.torch_tensors(model, params))
        contents = {"config.json": transformers_folder.config(model, text, dtype)}
        contents |= transformers_folder.processor(model, trained.sizes, resize, views)
        transformers_folder.write_code(folder)
    transformers_folder.write_json(folder, contents)
    return count


def _described(trained: TrainedModel, license: str | None) -> Description:
    """The description with what a card tells of a run; of a bundle it has it already."""
    description, training = trained.description, dict(trained.description.training)
    if not bundles.is_bundle(trained.folder):
        training |= card_facts.gather(trained.folder, trained.step)
    if license:
        training["license"] = license
    return dataclasses.replace(description, training=training)


def templates_of(trained: TrainedModel) -> dict[str, str]:
    """Returns the templates that `infer` asks with, as of `chat_template.make`."""
    from vadapter.data.rows import prompts

    found = {}
    for kind in ("image", "video"):
        for asked in (False, True):
            template = trained.prompt(asked, kind == "video")
            if template is not None:
                found[kind + ("_question" if asked else "")] = prompts.resolve(template, asked)
    return found


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
