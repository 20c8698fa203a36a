"""A folder that transformers loads: configuration, weights, modelling file, processor, tokenizer and chat template."""

import dataclasses
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from vadapter.base.errors import UserError
from vadapter.data.rows import prompts
from vadapter.data.rows.preprocessors import chat_prompt
from vadapter.data.rows.sizes import Sizes, Views
from vadapter.data.rows.text_vocabulary import TextVocabulary
from vadapter.models.adapters import LMAdapterConfig, MlpConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.resampler import PerceiverConfig, PoolerConfig
from vadapter.models.serialization import CLASS, to_json
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLMConfig
from vadapter.sharing import chat_template, parameters, tokenizer
from vadapter.sharing.tokenizer import Exported

MODELLING, PROCESSING = "modeling_vadapter.py", "processing_vadapter.py"
MODEL_TYPE = "vadapter"
_FILES = Path(__file__).parent / "files"
_SHARD = 5 * 10**9  # bytes of a file of weights, as transformers itself splits them
_QUESTION = "What is this?"
# Of a part's configuration: what says how a machine computes it, and not what.
_OF_THE_MACHINE = ("attention_impl", "remat", "lora", "dtype")
_ADAPTERS = (MlpConfig, PerceiverConfig, PoolerConfig, LMAdapterConfig)


def check(model: Any, where: str) -> None:
    """Refuses a model that has parts of which the modelling file knows nothing.

    Raises:
        UserError: it has no adapter, an encoder or adapter of a class that is not vadapter's own, or a language model
            with relative position biases.
    """
    if not isinstance(model, VLMConfig) or model.adapter is None:
        raise UserError(f"{where} holds a model without an adapter. Export a run of stage 1 or 2.")
    known = {"encoder": (ViTConfig,), "adapter": _ADAPTERS, "decoder": (DecoderConfig,)}
    parts: list[tuple[str, Any, tuple[type, ...]]] = [(name, getattr(model, name), known[name]) for name in known]
    if isinstance(model.adapter, LMAdapterConfig):
        parts.append(("front", model.adapter.front, _ADAPTERS))
    for name, part, kinds in parts:
        if type(part) not in kinds:
            raise UserError(
                f"The {name} of {where} is a {type(part).__name__}; the modelling file for transformers has "
                f"{', '.join(kind.__name__ for kind in kinds)}. Share a bundle instead (vadapter export without "
                "--format), together with the module that defines the class."
            )
    lms = {"decoder": model.decoder, "adapter's language model": getattr(model.adapter, "lm", None)}
    for name, lm in lms.items():
        if getattr(lm, "relative_buckets", None) is not None:
            raise UserError(
                f"The {name} of {where} has relative position biases (relative_buckets), which the modelling file for "
                "transformers does not have. Share a bundle instead (vadapter export without --format)."
            )


@dataclasses.dataclass(frozen=True)
class Text:
    """What turns messages into ids.

    Attributes:
        tokenizer: of the vocabulary.
        template: Jinja.
        files: contents by name.
    """

    tokenizer: Exported
    template: str
    files: Mapping[str, str]


def text_of(
    vocabulary: TextVocabulary, templates: Mapping[str, str], has_videos: bool, whole: Collection[str] = ()
) -> Text:
    """Makes tokenizer and chat template, and compares the ids that they give with the vocabulary's.

    Args:
        vocabulary: of the model.
        templates: see `chat_template.make`.
        has_videos: whether the model was made for videos.
        whole: see `chat_template.make`.

    Raises:
        UserError: the ids differ, or as `tokenizer.make`.
    """
    made = tokenizer.make(vocabulary)
    template = chat_template.make(vocabulary, templates, made.start, made.end, made.leads, whole)
    kinds = ("image", "video") if has_videos else ("image",)
    for kind in kinds:
        for question in (None, _QUESTION, "Ünïcode 中文 🙂?"):
            _compare(vocabulary, made, template, templates, kind, question)
    return Text(made, template, tokenizer.files(made, template, vocabulary.pad_id, vocabulary.ends))


def _compare(
    vocabulary: TextVocabulary,
    made: Exported,
    template: str,
    templates: Mapping[str, str],
    kind: str,
    question: str | None,
) -> None:
    said = [{"type": "text", "text": question}] if question else []
    content = [{"type": kind}, *said]
    text = chat_template.render(template, [{"role": "user", "content": content}])
    text = text.replace(chat_template.WHOLE_IMAGE, chat_template.IMAGE)
    found = made.tokenizer.encode(text, add_special_tokens=False).ids
    asked = templates.get(kind + ("_question" if question else ""))
    ours: Any = chat_prompt(prompts.OBJECT + (question or ""), vocabulary)
    if asked is not None:
        ours, _ = prompts.write(asked, vocabulary, question)
    mark = made.image_id if kind == "image" else made.video_id
    expected = [max(vocabulary.bos_id or 0, 0), *(mark if i == prompts.MEDIA_ID else int(i) for i in ours)]
    if found != expected:
        raise UserError(
            f"{vocabulary} writes the prompt of {kind}s as {expected}, and as a tokenizer of transformers it writes "
            f"{found} ({text!r}). So the exported model would read other text than it was trained on. Train with a "
            "vocabulary that has a tokenizer.json of Hugging Face, or share a bundle (vadapter export alone)."
        )


def config(model: VLMConfig, text: Text, dtype: str) -> dict[str, Any]:
    """Returns the content of `config.json`.

    Args:
        model: without LoRA.
        text: of its prompts.
        dtype: of the computation, and of the parameters once they are loaded.
    """
    record = to_json(model)
    names = {"vision": "encoder", "adapter": "adapter", "language": "decoder"}
    parts = {name: _described(record[part], getattr(model, part)) for name, part in names.items()}
    return {
        "architectures": ["VAdapterForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "modeling_vadapter.VAdapterConfig",
            **dict.fromkeys(
                ("AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM"),
                "modeling_vadapter.VAdapterForConditionalGeneration",
            ),
        },
        "dtype": dtype,
        **parts,
        "quantization": record["quantization"],
        "num_frames": model.num_frames,
        "repeat_stills": model.repeat_stills,
        "image_token_index": text.tokenizer.image_id,
        "video_token_index": text.tokenizer.video_id,
        "tie_word_embeddings": model.decoder.tied_head,
    }


def _described(record: Any, config: Any) -> Any:
    """A part's record without what is of the machine, its decoders with their frequencies."""
    kept: dict[str, Any] = {key: value for key, value in record.items() if key not in _OF_THE_MACHINE}
    for name in ("lm", "front"):
        if name in kept:
            kept[name] = _described(record[name], getattr(config, name))
    if record[CLASS] == "DecoderConfig":
        kept["rotary"] = parameters.rotary(config)
        kept.pop("rope_scaling")
    return kept


def processor(model: VLMConfig, sizes: Sizes, resize: str, views: Views) -> dict[str, dict[str, Any]]:
    """Returns the contents of `preprocessor_config.json` and `processor_config.json`."""
    encoder = model.encoder
    assert isinstance(encoder, ViTConfig)
    auto = {
        "AutoProcessor": "processing_vadapter.VAdapterProcessor",
        "AutoImageProcessor": "processing_vadapter.VAdapterImageProcessor",
    }
    return {
        "preprocessor_config.json": {
            "image_processor_type": "VAdapterImageProcessor",
            "processor_class": "VAdapterProcessor",
            "auto_map": auto,
            "size": encoder.image_size,
            "resize": resize,
            "image_mean": list(encoder.mean),
            "image_std": list(encoder.std),
            "max_tiles": views.max_tiles,
        },
        "processor_config.json": {
            "processor_class": "VAdapterProcessor",
            "auto_map": auto,
            "image_token": chat_template.IMAGE,
            "video_token": chat_template.VIDEO,
            "num_image_tokens": sizes.visual_tokens(1),
            "num_video_tokens": sizes.visual_tokens(model.num_frames),
            "num_frames": model.num_frames,
            "whole_token": chat_template.WHOLE_IMAGE,
            "stills_are_clips": views.clips,
        },
    }


def write_code(folder: Path) -> None:
    """Puts the modelling file and the processing file into a folder."""
    for name in (MODELLING, PROCESSING):
        shutil.copyfile(_FILES / name, folder / name)


def write_json(folder: Path, contents: Mapping[str, Any]) -> None:
    """Writes JSON files by their names."""
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard: int = _SHARD) -> int:
    """Writes safetensors, in several files with an index where they are large.

    Args:
        folder: to write into.
        tensors: by name; one file of them is in memory at a time.
        shard: bytes of a file.

    Returns:
        The number of parameters.
    """
    files: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    count, size, total = 0, 0, 0

    def flush() -> None:
        name = f"model-{len(files) + 1:05}.safetensors"
        safetensors.numpy.save_file(held, folder / name, metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, x in tensors:
        if held and size + x.nbytes > shard:
            flush()
            size = 0
        held[name] = x
        size, total, count = size + x.nbytes, total + x.nbytes, count + x.size
    flush()
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    else:
        where = {name: file for file, inside in zip(names, files, strict=True) for name in inside}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder, {"model.safetensors.index.json": index})
    for i, name in enumerate(names):
        (folder / f"model-{i + 1:05}.safetensors").rename(folder / name)
        (folder / name).chmod(0o644)  # safetensors lets nobody else read it
    return count
