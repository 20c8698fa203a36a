"""Makes golden.json: what transformers computes with the weights that `check.py` compares.

pip install torch transformers accelerate gguf onnx
python examples/open/golden.py --data examples/open/data

Weights are rounded to bf16 first, as `vadapter import` stores them; all is computed in f32.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import fetch
import folders
import numpy as np
import torch
import transformers
from check import GOLDEN, HERE, NEEDED, pick, picture

TEXT = "The quick brown fox can't jump over 42 lazy dogs: naïve café,  two spaces\nand a line. 🙂"
PROMPT = "The capital of France is"
NEW = 16


def rounded(model: torch.nn.Module) -> torch.nn.Module:
    """Rounds a model's weights to bf16."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HERE / "data", type=Path, metavar="DIR")
    args = parser.parse_args()
    raw, file = fetch.fetch(args.data, NEEDED), "SmolLM2-135M-Instruct.Q4_1.gguf"
    words = transformers.AutoTokenizer.from_pretrained(raw, gguf_file=file)
    ids, prompt = (words(text, add_special_tokens=False)["input_ids"] for text in (TEXT, PROMPT))
    eager = {"attn_implementation": "eager"}
    lm = transformers.AutoModelForCausalLM.from_pretrained(raw, gguf_file=file, dtype=torch.float32, **eager)
    rounded(lm)
    folder = args.data / "models/vit"
    folders.make(raw / "vit_s_focus.onnx", folder)
    vit, said = transformers.Dinov2Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **eager)
    if set(said["missing_keys"]) - {"embeddings.mask_token"} or said["unexpected_keys"]:
        raise SystemExit(f"The ViT's tensors do not fit: {said}")
    rounded(vit)
    mean, std = (np.array(folders.PIXELS[name], np.float32) for name in ("image_mean", "image_std"))
    pixels = (picture().astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        logits = lm(torch.tensor([ids])).logits[0].numpy()
        tokens = vit(torch.tensor(pixels.transpose(2, 0, 1)[None])).last_hidden_state[0, 1:].numpy()
        greedy = list(prompt)
        for _ in range(NEW):
            greedy.append(int(lm(torch.tensor([greedy])).logits[0, -1].argmax()))
    made_with = {name: version(name) for name in ("transformers", "torch", "gguf", "onnx")}
    content = {
        "made_with": {"command": "python examples/open/golden.py", **made_with},
        **{"text": TEXT, "ids": ids, "prompt": PROMPT, "prompt_ids": prompt, "greedy": greedy[len(prompt) :]},
        **pick(logits, tokens),
    }
    GOLDEN.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {GOLDEN}: {words.decode(greedy)!r}")


if __name__ == "__main__":
    main()
