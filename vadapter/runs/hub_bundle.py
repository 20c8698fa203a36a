"""Bundles of Hugging Face's hub, named by `hf:owner/name[@revision]`. Only what is named so is fetched."""

from vadapter.base.errors import UserError
from vadapter.runs import bundle
from vadapter.weights import hub


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
