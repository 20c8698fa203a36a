"""The same models in transformers. `python -m tests.weights.parity` makes the golden files anew and prints a table.

Needs torch and transformers, which nothing else in the repository does.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    options = {"pixel_values": torch.tensor(pixels.transpose(0, 3, 1, 2))}
    # Which the families need that do not resample by themselves.
    if frames.shape[1] != config.image_size and model.config.model_type.startswith(("siglip", "clip")):
        options["interpolate_pos_encoding"] = True
    with torch.no_grad():
        hidden = inner(**options).last_hidden_state.numpy()
    # All tokens but the first ones, which stand for no patch.
    return hidden[:, -((frames.shape[1] // config.patch_size) ** 2) :]


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


def compare(family: str, theirs: families.Named) -> tuple[float, float, float | None]:
    """Returns the largest difference of logits or patches, the largest value, and the share of equal new tokens."""
    source = families.opened(families.config(family), families.tensors(family))
    apart, largest, same = 0.0, 0.0, None
    if family in families.ENCODERS:
        config, params, _ = families.load(source, "encoder")
        for name, frames in families.frames_of(theirs).items():
            ours = families.patches(config, params, frames)
            apart = max(apart, float(np.abs(ours - theirs[name]).max()))
            largest = max(largest, float(np.abs(ours).max()))
    if family in families.TEXT:
        config, params, _ = families.load(source, "decoder")
        ours = families.logits(config, params, theirs["tokens"], theirs["mask"])
        apart = max(apart, float(np.abs(ours - theirs["logits"]).max()))
        largest = max(largest, float(np.abs(ours).max()))
        text = families.generate(config, params, theirs["tokens"], theirs["mask"], NEW_TOKENS)
        same = float((text == theirs["generated"]).mean())
    return apart, largest, same


def main() -> int:
    """Makes golden files and prints the table."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"{'family':24} {'max abs difference':>20} {'max abs value':>14} {'tokens the same':>16}")
    for family in families.FAMILIES:
        folder = families.GOLDEN / family
        lines = (f"{json.dumps(name)}: {shape}" for name, shape in shapes(family).items())
        (folder / "tensors.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        with tempfile.TemporaryDirectory() as made:
            model = load(family, families.write_folder(family, made))
            theirs = reference(family, model)
        np.savez_compressed(folder / "outputs.npz", **theirs)
        apart, largest, same = compare(family, theirs)
        shown = "" if same is None else f"{same:.1%}"
        print(f"{family:24} {apart:20.2e} {largest:14.2f} {shown:>16}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
