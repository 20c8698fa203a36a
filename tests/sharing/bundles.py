"""Bundles of models with random weights, with all of the model in them."""

from pathlib import Path

import numpy as np

from tests.data.tokenizer_files import write_sentencepiece, write_tokenizer
from tests.models import small
from vadapter.base import trees
from vadapter.base.paths import relative
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import abstract_params
from vadapter.runs import bundle
from vadapter.runs.description import Description, Text

LENGTHS = {"inputs": 120, "targets": 24}
SIZE = 24  # of pictures; other than that of the models
ROWS = 512  # of the decoders' tables


def random_params(config: VLMConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters none of which is zero or one everywhere: a part that is left out changes what comes out."""
    from flax import linen as nn

    abstract = trees.flatten(nn.unbox(abstract_params(VLM(config), config.example_batch())))
    rng = np.random.default_rng(seed)
    made = {}
    for path, x in abstract.items():
        fan = np.prod(x.shape[:-1]) if path.endswith("kernel") else 4.0
        fan = (
            fan / (x.shape[0] if "layers/" in path or "encoderblock" in path else 1) if path.endswith("kernel") else fan
        )
        values = rng.standard_normal(x.shape) * max(fan, 1.0) ** -0.5
        made[path] = (values + (path.endswith("scale"))).astype(np.float32)
    return made


def write(
    folder: Path,
    config: VLMConfig,
    tokenizer: str = "gemma",
    prompt_format: str = "plain",
    resize: str = "stretch",
    prompts=None,
    params=None,
    words: bytes | None = None,
    **described,
) -> Path:
    """Writes a bundle. `tokenizer` is a family of `tokenizer_files`, or "scenes", or "sentencepiece:family"; `words` is
    a SentencePiece model; `described` are further fields of its `Description`."""
    if words is not None:
        path = str(folder / "words.model")
        Path(path).write_bytes(words)
        where = relative(path, str(folder / "bundle"))
    elif tokenizer == "scenes":
        where, path = "", ""
    elif tokenizer.startswith("sentencepiece:"):
        path = str(write_sentencepiece(folder / "words.model", tokenizer.partition(":")[2]))
        where = relative(path, str(folder / "bundle"))
    else:
        path = str(write_tokenizer(folder / "tokenizer", tokenizer))
        where = relative(path, str(folder / "bundle"))
    text = Text(where, vocabularies.sha256(path), LENGTHS, prompts or {}, prompt_format)
    description = Description(config, text, resize, frozen_dtype="float32", **described)
    bundle.write(str(folder / "bundle"), description, random_params(config) if params is None else params, step=1)
    return folder / "bundle"


def model(adapter, decoder=None, encoder=None, **changes) -> VLMConfig:
    """A VLM of the small parts, for vocabularies of up to 512 ids."""
    decoder = small.decoder(**{"vocab_size": ROWS, **(decoder or {})})
    return VLMConfig(decoder, small.vit(**(encoder or {})), adapter, **changes)


def pictures(count: int = 3) -> list[np.ndarray]:
    """Random pictures of an odd shape."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (SIZE, SIZE + 7, 3), np.uint8) for _ in range(count)]
