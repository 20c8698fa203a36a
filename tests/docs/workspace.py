"""The folder that the programs of docs/python.md start in: small weights in the official formats, data, a bundle."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import save_file

from tests import tiny_bundle
from tests.data.tokenizer_files import write_tokenizer
from tests.weights import families
from vadapter.base import resources

ROOT = Path(__file__).parents[2]
VOCABULARY = 512  # rows of the table: more than the small tokeniser has


def make(folder: Path) -> None:
    """Writes downloads/siglip2, downloads/gemma, photos/ and bundles/owl, all with random weights."""
    families.write_folder("siglip2", folder / "downloads" / "siglip2")
    write_language_model("gemma3_text", folder / "downloads" / "gemma")
    shutil.copytree(resources.folder("data") / "samples", folder / "photos")
    tiny_bundle.write_bundle(folder / "bundles", name="owl", lengths={"inputs": 64, "targets": 32})


def write_language_model(family: str, folder: Path) -> None:
    """Writes a language model of a golden family with a tokeniser and a table that is large enough for it."""
    tensors = families.tensors(family)
    table = "model.embed_tokens.weight"
    tensors[table] = families.make_tensor(table, (VOCABULARY, tensors[table].shape[1]))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**families.config(family), "vocab_size": VOCABULARY}))
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder, "gemma")


def environment() -> dict[str, str]:
    """Of a user's process: one device, where tests have eight. Programs are compiled more than run: optimise little."""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick, "PYTHONPATH": str(ROOT)}


def run(code: str, folder: Path) -> str:
    """Runs a program in a folder as a user does, and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
