"""The same models in transformers, live. Needs torch and transformers, which nothing else in the repository does.

python -m tests.weights.parity golden [family ...]   makes the golden files anew, of these families or of all
python -m tests.weights.parity table                 compares all families and writes docs/parity.md
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from safetensors import safe_open

from tests.weights import families
from vadapter.models.vit import ViTConfig

NEW_TOKENS = 12
# The two best logits are further apart than this at each new token, so that rounding does not change the text.
MARGIN = 1e-3
LENGTH = 14
# Real tokens of each row of the inputs, and whether the padding is on the left.
ROWS = ((14, True), (9, True), (10, False), (5, True))

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
# Published models that have the settings of a family's small model.
MODELS = {
    "aimv2": "AIMv2",
    "aimv2_native": "AIMv2 native, pictures of any size",
    "clip": "CLIP, both towers",
    "clip_vision": "CLIP, the image tower alone",
    "dinov2": "DINOv2",
    "dinov2_giant": "DINOv2 ViT-g",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3": "DINOv3 S, B, L; S+ and H+ with a gate",
    "dinov3_7b": "DINOv3 7B",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3, 4B and more, with its SigLIP",
    "gemma3_text": "Gemma 3, text alone",
    "granite": "Granite 3",
    "llama2": "Llama 2",
    "llama3": "Llama 3.1, 3.2; SmolLM2 without the stretch",
    "mistral": "Mistral 7B v0.1; later ones without the window",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "phi3": "Phi-3 mini 4k; Phi-4 without the window",
    "phi4_mini": "Phi-4 mini, Phi-3.5 mini",
    "qwen2": "Qwen 2, 2.5",
    "qwen2_window": "Qwen 2 with a sliding window",
    "qwen2_yarn": "Qwen 2.5 stretched by YaRN",
    "qwen3": "Qwen3",
    "siglip": "SigLIP, both towers",
    "siglip2": "SigLIP 2 of fixed resolution",
    "siglip2_naflex": "SigLIP 2 NaFlex on square pictures, both towers",
    "siglip_vision": "SigLIP, the image tower alone",
    "smollm3": "SmolLM3",
}
# Fields of a configuration that are sizes, and those of the run.
_SIZES = (
    "vocab_size",
    "width",
    "depth",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "image_size",
    "patch_size",
    "position_grid",
)
_NOT_OF_THE_MODEL = ("dtype", "mean", "std")


def model_class(family: str) -> Any:
    """The class of transformers that holds all of a family's tensors."""
    return getattr(transformers, families.config(family)["architectures"][0])


def save(family: str, folder: Path, **options: Any) -> None:
    """Saves a family's model, randomly initialised, as transformers does."""
    kind = model_class(family)
    kind(kind.config_class.from_dict(families.config(family))).save_pretrained(folder, **options)


def shapes(family: str) -> dict[str, list[int]]:
    """Names and shapes of a family's tensors as transformers saves them."""
    with tempfile.TemporaryDirectory() as folder:
        save(family, Path(folder))
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def load(family: str, folder: Path) -> Any:
    """Loads a folder into transformers, strictly."""
    model, info = model_class(family).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {kind: names for kind, names in info.items() if names}
    if wrong:
        raise ValueError(f"transformers does not read the tensors of {family} as they are: {wrong}")
    return model.eval()


def text_inputs(family: str, seed: int) -> families.Named:
    """Rows of random ids, padded on either side."""
    settings = families.config(family)
    vocab = settings.get("text_config", settings)["vocab_size"]
    rng = np.random.RandomState(seed)
    mask = np.zeros((len(ROWS), LENGTH), np.int32)
    for row, (length, left) in zip(mask, ROWS, strict=True):
        row[LENGTH - length if left else 0 :][:length] = 1
    # The last ids are those of images in the multimodal model.
    return {"tokens": (rng.randint(3, vocab - 8, mask.shape) * mask).astype(np.int32), "mask": mask}


def text_outputs(model: Any, tokens: np.ndarray, mask: np.ndarray) -> families.Named:
    """Logits at the real tokens, and what greedy decoding adds to the rows, padded on the left for transformers."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions).long(),
        ).logits.numpy()
    packed = [row[real > 0] for row, real in zip(tokens, mask, strict=True)]
    prompts = np.stack([np.pad(row, (tokens.shape[1] - len(row), 0)) for row in packed])
    # No end token: all rows are as long.
    model.generation_config = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=0)
    made = model.generate(
        torch.tensor(prompts).long(),
        attention_mask=torch.tensor(np.sort(mask, axis=1)).long(),
        do_sample=False,
        use_cache=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(made.scores).topk(2).values
    return {
        "logits": logits * mask[..., None],
        "generated": made.sequences[:, tokens.shape[1] :].numpy().astype(np.int32),
        "margin": (best[..., 0] - best[..., 1]).min().numpy(),
    }


def vision_inputs(family: str, config: ViTConfig) -> families.Named:
    """Random frames, of fewer and of more patches as well where the family reads them."""
    grids = () if family in families.ONE_SIZE else (config.grid // 2, 2 * config.grid - 1)
    sizes = {"frames": (2, config.image_size)} | {f"frames_{n}": (1, n * config.patch_size) for n in grids}
    rng = np.random.RandomState(1)
    return {name: rng.randint(0, 256, (count, n, n, 3)).astype(np.uint8) for name, (count, n) in sizes.items()}


def vision_outputs(model: Any, config: ViTConfig, inputs: families.Named) -> families.Named:
    """Patch tokens of the last layer."""
    return {name: _patches(model, config, frames) for name, frames in families.frames_of(inputs).items()}


def _patches(model: Any, config: ViTConfig, frames: np.ndarray) -> np.ndarray:
    pixels = (frames.astype(np.float32) / 255 - np.float32(config.mean)) / np.float32(config.std)
    inner = model
    for part in ("vision_tower", "vision_model"):
        inner = getattr(getattr(inner, "model", inner), part, inner)
    kind, grid = model.config.model_type, frames.shape[1] // config.patch_size
    if kind == "siglip2":
        options = _as_lists_of_patches(pixels, config.patch_size)
    else:
        options = {"pixel_values": torch.tensor(pixels.transpose(0, 3, 1, 2))}
    # Which the families need that do not resample by themselves.
    if grid != config.grid and kind in ("siglip", "siglip_vision_model", "clip", "clip_vision_model"):
        options["interpolate_pos_encoding"] = True
    with torch.no_grad():
        hidden = inner(**options).last_hidden_state.numpy()
    # All tokens but the first ones, which stand for no patch.
    return hidden[:, -(grid**2) :]


def _as_lists_of_patches(pixels: np.ndarray, size: int) -> dict[str, Any]:
    """What NaFlex reads: the pixels of each patch as a vector, which patches are real, and the shape of the grid."""
    count, side = len(pixels), pixels.shape[1] // size
    patches = pixels.reshape(count, side, size, side, size, 3).swapaxes(2, 3).reshape(count, side**2, -1)
    return {
        "pixel_values": torch.tensor(patches),
        "pixel_attention_mask": torch.ones(count, side**2, dtype=torch.long),
        "spatial_shapes": torch.full((count, 2), side),
    }


def reference(family: str, model: Any) -> families.Named:
    """Inputs and outputs of all parts of a family."""
    made: families.Named = {}
    if family in families.TEXT:
        tried = (text_inputs(family, seed) for seed in range(100))
        made |= next(x for inputs in tried if (x := inputs | text_outputs(model, **inputs))["margin"] > MARGIN)
    if family in families.ENCODERS:
        config, _, _ = families.load(families.opened(families.config(family), families.tensors(family)), "encoder")
        inputs = vision_inputs(family, config)
        made |= inputs | vision_outputs(model, config, inputs)
    return made


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What ours and transformers' outputs of one part of a model have in common.

    Attributes:
        config: our configuration of the part.
        apart: largest difference of logits or patch tokens.
        largest: largest of their absolute values.
        same: new tokens of greedy decoding that are equal; None of an encoder.
        tokens: new tokens.
    """

    config: Any
    apart: float
    largest: float
    same: int | None = None
    tokens: int = 0


def compare(family: str, theirs: families.Named) -> dict[str, Comparison]:
    """Compares our outputs with transformers', by part: `encoder`, `decoder`."""
    source = families.opened(families.config(family), families.tensors(family))
    found = {}
    if family in families.ENCODERS:
        config, params, _ = families.load(source, "encoder")
        sizes = families.frames_of(theirs).items()
        pairs = [_apart(families.patches(config, params, frames), theirs[name]) for name, frames in sizes]
        found["encoder"] = Comparison(config, *(max(column) for column in zip(*pairs, strict=True)))
    if family in families.TEXT:
        config, params, _ = families.load(source, "decoder")
        ours = families.logits(config, params, theirs["tokens"], theirs["mask"])
        text = families.generate(config, params, theirs["tokens"], theirs["mask"], NEW_TOKENS)
        same = int((text == theirs["generated"]).sum())
        found["decoder"] = Comparison(config, *_apart(ours, theirs["logits"]), same, text.size)
    return found


def _apart(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())


def make_golden(family: str) -> None:
    """Writes a family's `tensors.json` and `outputs.npz` for its `config.json`."""
    folder = families.GOLDEN / family
    lines = (f"{json.dumps(name)}: {shape}" for name, shape in shapes(family).items())
    (folder / "tensors.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    with tempfile.TemporaryDirectory() as made:
        model = load(family, families.write_folder(family, made))
        np.savez_compressed(folder / "outputs.npz", **reference(family, model))
    print(f"made {folder}")


def live(family: str) -> families.Named:
    """Returns the golden inputs of a family, and what its small model in transformers makes of them now."""
    with tempfile.TemporaryDirectory() as made:
        model = load(family, families.write_folder(family, made))
        theirs = families.outputs(family)
        if family in families.TEXT:
            theirs |= text_outputs(model, theirs["tokens"], theirs["mask"])
        if family in families.ENCODERS:
            config = families.load(families.opened(families.config(family), families.tensors(family)), "encoder")[0]
            theirs |= vision_outputs(model, config, theirs)
    return theirs


def page() -> str:
    """Compares all families and returns `docs/parity.md`."""
    found = {family: compare(family, live(family)) for family in families.FAMILIES}
    versions = (
        f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, jax {jax.__version__}"
    )
    lines = [
        "# Parity with transformers",
        "",
        "Each family that `vadapter import` reads from Hugging Face folders has a small model with random weights,",
        "whose `config.json` is written as the published ones are. Both libraries load the same folder and run in f32",
        f"on a CPU, transformers with eager attention ({versions}).",
        "`make parity` repeats this and fails at a difference of 1e-4, `make test` compares with recorded outputs, and",
        "`python -m tests.weights.parity table` writes this page.",
        "",
        "## Decoders",
        "",
        f"{len(ROWS)} rows of 5 to {LENGTH} tokens, padded on the left or on the right, are read at once;",
        f"then {NEW_TOKENS} tokens of each are decoded greedily with the cache.",
        "*Settings* are the fields of `DecoderConfig`, sizes aside, that are not at their default.",
        "",
        "| models | small model | settings | largest logit | largest difference | new tokens equal |",
        "| --- | --- | --- | --- | --- | --- |",
        *_lines(found, "decoder"),
        "",
        "## Encoders",
        "",
        "Patch tokens of random pictures of the size of the pretraining, of about half of its side and of almost twice "
        "as much, where transformers reads them.",
        "*Settings* are the fields of `ViTConfig`, sizes aside, that are not at their default.",
        "",
        "| models | small model | settings | largest value | largest difference |",
        "| --- | --- | --- | --- | --- |",
        *_lines(found, "encoder"),
    ]
    return "\n".join([*lines, ""])


def _lines(found: dict[str, dict[str, Comparison]], part: str) -> list[str]:
    lines = []
    for family, parts in found.items():
        if part in parts:
            x = parts[part]
            cells = [MODELS[family], f"`{family}`", _settings(x.config), f"{x.largest:.1f}", f"{x.apart:.1e}"]
            cells += [] if x.same is None else [f"{x.same} of {x.tokens}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _settings(config: Any) -> str:
    names = [
        f"`{field.name}`"
        for field in dataclasses.fields(config)
        if field.name not in (*_SIZES, *_NOT_OF_THE_MODEL) and getattr(config, field.name) != field.default
    ]
    return ", ".join(names) or "none"


def main() -> int:
    """Makes golden files, or the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.weights.parity")
    parser.add_argument("what", choices=("golden", "table"))
    parser.add_argument("families", nargs="*", metavar="family")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.what == "golden":
        for family in args.families or families.FAMILIES:
            make_golden(family)
    else:
        PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
