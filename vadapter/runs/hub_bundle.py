"""Bundles of Hugging Face's hub, named by `hf:owner/name[@revision]`. Only what is named so is fetched or pushed."""

import os
from pathlib import Path

from vadapter.base.errors import UserError
from vadapter.runs import bundle, card
from vadapter.weights import hub, hub_push
from vadapter.weights.hub_push import Target


def fetch(source: str) -> str:
    """Fetches the files of a bundle, and no others: its JSON and its safetensors. What the cache has is kept.

    Args:
        source: `hf:owner/name`, or with a branch, a tag or a commit behind an @; a commit never changes.

    Returns:
        The folder, in the library's cache.

    Raises:
        UserError: `huggingface_hub` is not installed; the hub cannot be reached or refuses; or there is no bundle.
    """
    wanted = hub.parse(source)
    if wanted.file:
        raise UserError(f"{source} names a GGUF file. A bundle is a whole repository: hf:{wanted.repository}.")
    return hub.snapshot(wanted, (bundle.FILE, bundle.ADAPTER))


def push(folder: str, target: Target) -> str:
    """Puts a bundle on the hub, with its card. A card that nobody edited names the repository in its examples.

    Args:
        folder: the bundle.
        target: as `hub_push.check` gives it.

    Returns:
        The address of the commit.

    Raises:
        UserError: there is no whole bundle, or as `hub_push.upload`.
    """
    opened = bundle.read(folder)
    sizes = {path: x.size for path, x in opened.arrays().items()}  # which compares the hash

    def made(repository: str | None) -> str:
        size = os.path.getsize(os.path.join(folder, bundle.ADAPTER))
        facts = (opened.description, opened.backbones, sizes, size, opened.step)
        return card.of_bundle(Path(folder).resolve().name, *facts, repository)

    written = Path(folder) / bundle.CARD
    if not written.is_file() or written.read_text(encoding="utf-8") == made(None):
        written.write_text(made(target.repository), encoding="utf-8")
    names = (bundle.FILE, bundle.ADAPTER, bundle.CARD)
    return hub_push.upload(target, folder, names, f"Bundle of vadapter, step {opened.step}")
