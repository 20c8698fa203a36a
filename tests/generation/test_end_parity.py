"""Models with several end tokens, beside transformers: greedy and beam search give the same texts."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.weights import families
from vadapter.base.batch import Batch
from vadapter.generation.decoding import EMPTY, DecodingConfig, decode
from vadapter.models.vlm import VLM, VLMConfig

NEW = 20
ROWS = 6
LENGTH = 8
FAMILIES = ["gemma3_text", "llama3", "qwen3", "mistral"]


def prompts(family: str) -> np.ndarray:
    vocab = families.config(family)["vocab_size"]
    return np.random.RandomState(5).randint(3, vocab - 8, (ROWS, LENGTH)).astype(np.int32)


def ours(family: str, tokens: np.ndarray, ends: tuple[int, ...], config: DecodingConfig) -> tuple[np.ndarray, int]:
    decoder, params, _ = families.load(families.opened(families.config(family), families.tensors(family)))
    model = VLM(VLMConfig(decoder=dataclasses.replace(decoder, dtype="float32")))
    ones = np.ones_like(tokens)
    unused = np.zeros((len(tokens), 1), np.int32)
    batch = Batch(
        tokens=tokens,
        segment_ids=ones,
        positions=np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        media_index=-ones,
        media=np.zeros((len(tokens), 0, 1, 1, 1, 3), np.uint8),
        target_positions=unused,
        target_ids=unused,
        target_weights=unused.astype(np.float32),
    )
    made = jax.jit(lambda params, batch: decode(model, params, batch, config, ends))({"decoder": params}, batch)
    return np.asarray(made.ids), int(made.steps)


def theirs(model, tokens: np.ndarray, ends: tuple[int, ...], beams: int) -> np.ndarray:
    """What transformers writes, up to an end token."""
    import torch
    import transformers

    # Without a penalty, as ours of length is another formula; a row is done when `beams` texts have ended.
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=NEW,
        pad_token_id=0,
        eos_token_id=list(ends),
        num_beams=beams,
        length_penalty=0.0,
        early_stopping=beams > 1,
        do_sample=False,
    )
    given = torch.tensor(tokens).long()
    made = model.generate(given, attention_mask=torch.ones_like(given))[:, tokens.shape[1] :].numpy()
    found = np.full((len(tokens), NEW), EMPTY)
    for row, text in zip(found, made.tolist(), strict=True):
        end = next((i for i, token in enumerate(text) if token in ends), len(text))
        row[:end] = text[:end]
    return found


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_several_end_tokens_end_the_texts_that_they_end_in_transformers(family, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.weights import parity

    model, tokens = parity.load(family, families.write_folder(family, tmp_path)), prompts(family)
    greedy, beam = DecodingConfig(max_new_tokens=NEW), DecodingConfig("beam", NEW, beams=4, length_penalty=0.0)
    free, _ = ours(family, tokens, (), greedy)
    # Two tokens that rows write early, so that every kind of end happens.
    found, counts = np.unique(free, return_counts=True)
    ends = tuple(int(i) for i in found[np.argsort(-counts, kind="stable")][:2])
    np.testing.assert_array_equal(ours(family, tokens, ends, greedy)[0], theirs(model, tokens, ends, 1))
    np.testing.assert_array_equal(ours(family, tokens, ends, beam)[0], theirs(model, tokens, ends, 4))
