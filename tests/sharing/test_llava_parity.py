"""LLaVA's layout in stock transformers, live: logits to 1e-4, and greedy text token for token."""

import numpy as np
import pytest

import vadapter
from tests.models import small
from tests.sharing import bundles
from tests.sharing.test_transformers_parity import DECODERS, decoding, first_logits, messages, theirs
from vadapter.runs.export_transformers import export_transformers

pytestmark = pytest.mark.parity

LLAMA = dict(norm="rms", activation="silu")
GEMMA3 = {**DECODERS["gemma3"], "query_scale": 0.5}
SIGLIP = dict(image_size=28, position_grid=2, position_resampling="bicubic", drop_edges=True)
CLIP = dict(class_token=True, pre_norm=True, patch_bias=False, activation="quick_gelu", final_norm=False)
DINOV2 = dict(class_token=True, layer_scale=True, activation="gelu")
MODELS = {
    "siglip, linear, gemma3": (small.mlp(), GEMMA3, SIGLIP, "stretch bicubic", "gemma"),
    "clip, mlp, llama3": (
        small.mlp(depth=2),
        {**DECODERS["llama3"], **LLAMA},
        CLIP,
        "center_crop bicubic 3/2",
        "llama3",
    ),
    "dinov2, narrow mlp, qwen2": (
        small.mlp(depth=2, hidden_dim=8),
        {**LLAMA, "qkv_bias": True, "tied_head": False},
        DINOV2,
        "stretch bicubic",
        "qwen",
    ),
    "siglip, mlp, qwen3": (small.mlp(depth=2), {**LLAMA, "qk_norm": True}, SIGLIP, "stretch lanczos", "qwen"),
}


@pytest.mark.parametrize("name", MODELS)
def test_stock_llava_says_the_same(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    adapter, decoder, encoder, resize, tokenizer = MODELS[name]
    made = bundles.write(tmp_path, bundles.model(adapter, decoder, encoder), tokenizer, resize=resize)
    export_transformers(made, tmp_path / "out", layout="llava")
    assert not list((tmp_path / "out").glob("*.py"))
    model, told = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, processor = vadapter.load(made), transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    for image, question in zip(bundles.pictures(2), (None, "what colour is the ring ?"), strict=True):
        logits, (text,) = theirs(model.eval(), processor, messages(image, question))
        np.testing.assert_allclose(logits[:, : bundles.ROWS], first_logits(ours, image, question), atol=1e-4)
        say = {"decoding": decoding()}
        assert text == (ours.answer(image, question, **say) if question else ours.caption(image, **say))
