"""Stage `decode`: batched greedy decoding, ours beside transformers' `generate`."""

import time
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from gpu_stages import model
from gpu_stages.record import Record, gib, times
from gpu_stages.training import describe_device
from vadapter.base import trees
from vadapter.base.batch import Batch
from vadapter.generation.config import DecodingConfig
from vadapter.generation.decoding import make_generate
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import abstract_params
from vadapter.training.storage import Storage


def decode(record: Record, directory: str) -> None:
    """Both write `new` tokens after a prefix of the decoder alone; reading the prefix is in the time."""
    describe_device(record)
    rows, prefix, new = (4, 12, 4) if record.small else (64, 300, 32)
    record.note(rows=rows, prefix=prefix, new_tokens=new, decoder="palm_1b")
    repeats = 2 if record.small else 5
    missing = _peer_missing(record.small)

    def ours(attention: str) -> None:
        with record.figure(f"vadapter_{attention}") as entry:
            run = _ours(attention, record.small, rows, prefix, new, entry)
            entry |= times(run, repeats)
            _speed(entry, rows * new)

    def theirs(cache: str, seconds: float) -> None:
        name = f"transformers_{cache}"
        if missing or (record.left < seconds and not record.small):
            return record.skip(name, missing or "no time left")
        with record.figure(name, cache=cache) as entry:
            start = time.perf_counter()
            run = _theirs(cache, record.small, rows, prefix, new)
            run()  # compiles, with a static cache
            run()
            entry["first_two_s"] = round(time.perf_counter() - start, 2)
            entry |= times(run, repeats, warm=0)
            _speed(entry, rows * new)

    # What no run has measured yet comes first; transformers compiles a step for its static cache, which takes longest.
    theirs("dynamic", 10)
    ours("xla")
    theirs("static", 20)
    if jax.default_backend() == "gpu":
        ours("cudnn")


def _peer_missing(small: bool) -> str | None:
    """Why transformers cannot decode here, or None."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError:
        return "torch or transformers is not installed"
    return None if small or torch.cuda.is_available() else "torch sees no GPU"


def _speed(entry: dict[str, Any], tokens: int) -> None:
    entry["new_tokens_per_s"] = round(tokens / entry["median_ms"] * 1e3, 1)
    if stats := jax.devices()[0].memory_stats():
        entry["peak_gib_of_process"] = gib(stats["peak_bytes_in_use"])


def _ours(attention: str, small: bool, rows: int, prefix: int, new: int, entry: dict[str, Any]):
    full = model.config("vit_l", "palm_1b", small, attention, "none")
    vlm = VLM(VLMConfig(full.decoder))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, full.decoder.vocab_size, (rows, prefix)).astype(np.int32)
    ones = np.ones_like(ids)
    unused = np.zeros((rows, 1), np.int32)
    batch = Batch(
        tokens=ids,
        segment_ids=ones,
        positions=np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        media_index=-ones,
        media=np.zeros((rows, 0, 1, 1, 1, 3), np.uint8),
        target_positions=unused,
        target_ids=unused,
        target_weights=unused.astype(np.float32),
    )
    partitioner = model.one_device()
    shapes = abstract_params(vlm, batch)
    storage = Storage.of(shapes, partitioner, trained=())
    structs = {path: storage.struct(path, x) for path, x in trees.flatten(nn.unbox(shapes)).items()}
    params = model.random_params(trees.unflatten(structs))
    placed = partitioner.put_batch(batch)
    generate = make_generate(vlm, partitioner, DecodingConfig("greedy", new), end_ids=())
    start = time.perf_counter()
    jax.block_until_ready(generate(params, placed))
    entry["first_s"] = round(time.perf_counter() - start, 2)
    return lambda: jax.block_until_ready(generate(params, placed))


def _theirs(cache: str, small: bool, rows: int, prefix: int, new: int):
    import torch

    from gpu_stages import peer_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = peer_model.language_model(model.config("vit_l", "palm_1b", small).decoder, device).eval()
    ids = torch.randint(1, lm.config.vocab_size, (rows, prefix), device=device)
    settings: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    if cache == "static":
        settings["cache_implementation"] = "static"

    def run() -> None:
        with torch.inference_mode():
            made = lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        assert made.shape == (rows, prefix + new), made.shape
        if device == "cuda":
            torch.cuda.synchronize()

    return run
