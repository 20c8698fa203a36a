"""Models of Hugging Face's hub, named by `hf:owner/name`: fetches the files that an import needs, and no others.

The library `huggingface_hub` does the fetching, by its own rules: its cache (HF_HOME), its login (HF_TOKEN), its
address (HF_ENDPOINT), and no network at all with HF_HUB_OFFLINE=1. Bundles of the hub come by the same way
(vadapter.runs.hub_bundle).
"""

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vadapter.base import json_text
from vadapter.base.errors import UserError
from vadapter.weights import files_gguf
from vadapter.weights.checkpoint import INDEX, PICKLES, SINGLE

PREFIX = "hf:"
MAIN = "main"
_FORM = re.compile(r"([\w.-]+/[\w.-]+?)(?:/([^@]+\.gguf))?(?:@(\S+))?")
_CONFIG = "config.json"
_PICTURES, _GENERATION = ("preprocessor_config.json", "processor_config.json"), ("generation_config.json",)
_SETTINGS = (_CONFIG, *_PICTURES, *_GENERATION)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_INSTALL = "pip install 'vadapter[hub]'"

Check = Callable[[Mapping[str, Any], str], str | None]


@dataclasses.dataclass(frozen=True)
class HubId:
    """A model of the hub.

    Attributes:
        repository: `owner/name`.
        revision: a branch, a tag or a commit; `main` where none was given.
        file: path of a GGUF file in the repository, or None.
    """

    repository: str
    revision: str = MAIN
    file: str | None = None

    def __str__(self) -> str:
        file, revision = self.file or "", self.revision if self.revision != MAIN else ""
        return f"{PREFIX}{self.repository}{file and '/'}{file}{revision and '@'}{revision}"


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A model of the hub on this machine.

    Attributes:
        id: as it was asked for.
        commit: hash that its revision had.
        path: a folder of the library's cache, or a GGUF file in it.
        files: what an import reads there.
        notes: sentences that the user should read.
        license: that the model's card names; None where it names none, or where the cache alone was looked at.
    """

    id: HubId
    commit: str
    path: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    license: str | None = None


def is_hub_id(source: str) -> bool:
    """Whether a source names a model of the hub and no file of this machine."""
    return source.startswith(PREFIX)


def parse(source: str) -> HubId:
    """Reads `hf:owner/name[/file.gguf][@revision]`.

    Raises:
        UserError: it is not of this form.
    """
    match = _FORM.fullmatch(source.removeprefix(PREFIX))
    if not match:
        raise UserError(
            f"Expected a model of Hugging Face's hub as hf:owner/name, hf:owner/name@revision or "
            f"hf:owner/name/file.gguf; found {source!r}. Copy owner and name from the head of the model's page."
        )
    repository, file, revision = match.groups()
    return HubId(repository, revision or MAIN, file)


def fetch(source: str, check: Check) -> Fetched:
    """Fetches what an import of a model needs; what the library's cache has is not fetched again.

    Args:
        source: see `parse`.
        check: is given config.json and a name for messages before anything large is fetched. It raises a `UserError`
            for a model that cannot be imported, and says whether it is an `encoder`, which needs no tokenizer. It is
            not called for a GGUF file, which has no config.json.

    Returns:
        Where the files are, and of which commit.

    Raises:
        UserError: `huggingface_hub` is not installed; the hub cannot be reached or refuses; the model or the revision
            is not there, or has no weights that can be read; the disk is too small; or as `check`.
    """
    wanted = parse(source)
    check_installed(wanted)
    from huggingface_hub import constants

    return (_Cache(wanted) if constants.HF_HUB_OFFLINE else _Hub(wanted)).fetch(check)


def snapshot(wanted: HubId, names: Sequence[str]) -> str:
    """Fetches files of a repository, and returns the folder of the library's cache that has them.

    Raises:
        UserError: as `fetch`; or one of the files is not there.
    """
    check_installed(wanted)
    from huggingface_hub import constants

    store = _Cache(wanted) if constants.HF_HUB_OFFLINE else _Hub(wanted)
    if missing := [name for name in names if name not in store.names]:
        raise UserError(f"{wanted} has no {missing[0]}, which was expected. Name another repository or revision.")
    paths = store.get(names)
    store.keep_revision(names[0])
    return os.path.dirname(paths[0])


def check_installed(wanted: HubId) -> None:
    """Raises a `UserError` where `huggingface_hub` is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"{wanted} names a model of Hugging Face's hub, which needs huggingface_hub: {_INSTALL}."
        ) from e


class _Absent(UserError):
    """Files that an import needs are not among those that there are."""


class _Store:
    """Where the files of a commit come from."""

    commit: str
    names: Sequence[str]
    license: str | None = None

    def __init__(self, wanted: HubId):
        self.wanted = wanted

    def get(self, names: Sequence[str]) -> list[str]:
        """Brings files to this machine and returns their paths."""
        raise NotImplementedError

    def notes(self, part: str | None) -> tuple[str, ...]:
        """Returns sentences that the user should read."""
        return ()

    def keep_revision(self, name: str) -> None:
        """Makes the cache know the commit of the revision, with the help of a file that it has."""

    def fetch(self, check: Check) -> Fetched:
        """Small files first: what is wrong with them is told before a large one is fetched."""
        weights = _weights(self.wanted, self.names)
        if weights[0].endswith(".gguf"):  # which says everything about the model itself
            return self._fetched(weights, self.get(weights)[0])
        part = check(_json(self.get([_CONFIG])[0]), str(self.wanted)) if _CONFIG in self.names else None
        small = [name for name in self.names if name in _SETTINGS]
        if part != "encoder":
            small += [name for name in self.names if name in _TOKENIZER or _top(name, ".model")]
        self.get(small)
        if weights == [INDEX]:
            weights = [INDEX, *self._shards(self.get(weights)[0])]
        return self._fetched([*small, *weights], os.path.dirname(self.get(weights)[0]), self.notes(part))

    def _fetched(self, files: Sequence[str], path: str, notes: tuple[str, ...] = ()) -> Fetched:
        self.keep_revision(files[0])
        return Fetched(self.wanted, self.commit, path, tuple(sorted(files)), notes, self.license)

    def _shards(self, index: str) -> list[str]:
        files = _json(index).get("weight_map")
        shards = sorted({str(file) for file in files.values()}) if isinstance(files, dict) else []
        if not shards or (missing := [file for file in shards if file not in self.names]):
            what = f"names {missing[0]}, which is not there" if shards else "names no files"
            raise _Absent(
                f"{INDEX} of {self.wanted} {what}: the repository is incomplete. Give another revision "
                f"(hf:{self.wanted.repository}@REVISION), or ask its owner."
            )
        return shards


class _Hub(_Store):
    """The hub itself, by the library."""

    def __init__(self, wanted: HubId):
        super().__init__(wanted)
        from huggingface_hub import HfApi, constants

        with _explained(wanted):
            api, timeout = HfApi(library_name="vadapter"), constants.HF_HUB_ETAG_TIMEOUT
            info = api.model_info(wanted.repository, revision=wanted.revision, files_metadata=True, timeout=timeout)
            self.commit = str(info.sha)
            self._sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        license = getattr(info.card_data, "license", None)
        self.license = license if isinstance(license, str) else None
        self.names = sorted(self._sizes)

    def get(self, names: Sequence[str]) -> list[str]:
        from huggingface_hub import hf_hub_download

        self._check_space(names)
        with _explained(self.wanted):
            # A commit, no branch: the branch may move on meanwhile, and what the cache has needs no question.
            where = self.wanted.repository
            return [hf_hub_download(where, n, revision=self.commit, library_name="vadapter") for n in names]

    def keep_revision(self, name: str) -> None:
        from huggingface_hub import hf_hub_download

        if self.wanted.revision != self.commit:
            with _explained(self.wanted):
                hf_hub_download(self.wanted.repository, name, revision=self.wanted.revision, library_name="vadapter")

    def _check_space(self, names: Sequence[str]) -> None:
        from huggingface_hub import constants, try_to_load_from_cache

        repository, cache = self.wanted.repository, constants.HF_HUB_CACHE
        there = {n for n in names if isinstance(try_to_load_from_cache(repository, n, revision=self.commit), str)}
        need, folder = sum(self._sizes[name] for name in names if name not in there), os.path.abspath(cache)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        if need > (free := shutil.disk_usage(folder).free):
            raise UserError(
                f"The files of {self.wanted} need {need / 1e9:.2f} GB, and the disk of the cache {cache} has "
                f"{free / 1e9:.2f} GB free. Make room (hf cache ls shows what is there), or set HF_HOME to a folder on "
                "another disk."
            )


class _Cache(_Store):
    """What the library has fetched before, without a network."""

    def __init__(self, wanted: HubId):
        super().__init__(wanted)
        from huggingface_hub import snapshot_download

        with _explained(wanted):
            folder = snapshot_download(
                wanted.repository, revision=wanted.revision, local_files_only=True, allow_patterns=[_CONFIG]
            )
        self._folder, self.commit = folder, os.path.basename(folder)
        found = (os.path.relpath(os.path.join(at, n), folder) for at, _, files in os.walk(folder) for n in files)
        self.names = sorted(name.replace(os.sep, "/") for name in found)

    def fetch(self, check: Check) -> Fetched:
        """What is missing may be on the hub; that is said."""
        try:
            return super().fetch(check)
        except _Absent as e:
            raise UserError(
                f"{e} HF_HUB_OFFLINE is set, so only the files that the cache has were looked at; if some were never "
                "fetched, import again with a network."
            ) from e

    def notes(self, part: str | None) -> tuple[str, ...]:
        """The cache does not tell a file that was never fetched from one that the model does not have."""
        wished = _PICTURES if part == "encoder" else _GENERATION
        if any(name in self.names for name in wished):
            return ()
        return (
            f"HF_HUB_OFFLINE is set, and of {self.wanted} the cache has no {wished[0]}. If the model has one, import "
            "again with a network.",
        )

    def get(self, names: Sequence[str]) -> list[str]:
        return [os.path.join(self._folder, *name.split("/")) for name in names]


def _weights(wanted: HubId, names: Sequence[str]) -> list[str]:
    """The files of the weights; the index alone where there is one."""
    if wanted.file:
        return _splits(wanted, wanted.file, names)
    if INDEX in names:
        return [INDEX]
    safetensors = [name for name in names if _top(name, ".safetensors")]
    if SINGLE in safetensors:
        return [SINGLE]
    if len(safetensors) == 1:
        return safetensors
    gguf = files_gguf.models(names)
    if len(gguf) == 1 and not safetensors:
        return _splits(wanted, gguf[0], names)
    raise _no_weights(wanted, names, safetensors, gguf)


def _splits(wanted: HubId, file: str, names: Sequence[str]) -> list[str]:
    """A GGUF file, or all files of a model that is split, the first one first."""
    split = files_gguf.SPLIT.fullmatch(file)
    files = [f"{split[1]}-{i:05}-of-{split[3]}.gguf" for i in range(1, int(split[3]) + 1)] if split else [file]
    if missing := [name for name in files if name not in names]:
        have = ", ".join(name for name in names if name.endswith(".gguf")) or "no .gguf file"
        raise _Absent(f"{missing[0]} is not in {wanted.repository} at {wanted.revision}; it has {have}. Name one.")
    return files


def _no_weights(wanted: HubId, names: Sequence[str], safetensors: list[str], gguf: list[str]) -> _Absent:
    if len(gguf) > 1 and not safetensors:
        shown = ", ".join(f"hf:{wanted.repository}/{name}" for name in gguf[:20])
        return _Absent(f"{wanted} has {len(gguf)} GGUF files, and a model is one. Give one of these: {shown}.")
    if safetensors:
        return _Absent(
            f"{wanted} has {len(safetensors)} .safetensors files ({', '.join(safetensors[:5])}) and no {INDEX} that "
            "says which belong together. Fetch the one that you want (hf download), and give it as the source."
        )
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return _Absent(
            f"{wanted} has its weights as PyTorch pickles only ({', '.join(pickles[:3])}), which are not read: "
            "unpickling a file runs what is in it. Look for a revision with safetensors among its pull requests "
            f"(hf:{wanted.repository}@refs/pr/1), or for another copy of the model."
        )
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return _Absent(
        f"{wanted} has no safetensors and no GGUF file at its top; it has {listed or 'nothing'}. Give a repository of "
        "a model that transformers reads, or fetch the files yourself (hf download) and give their folder."
    )


def _top(name: str, ending: str) -> bool:
    return name.endswith(ending) and "/" not in name


def _json(path: str) -> dict[str, Any]:
    try:
        content = json_text.read(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is no JSON: {e}. Remove it, and import again.") from e
    return content if isinstance(content, dict) else {}


@contextmanager
def _explained(wanted: HubId) -> Iterator[None]:
    """Makes a `UserError` of whatever the library raises; what it raises differs among its versions."""
    try:
        yield
    except Exception as e:
        raise UserError(_explanation(wanted, e)) from e


def _explanation(wanted: HubId, error: Exception) -> str:
    from huggingface_hub import constants, errors

    where, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{wanted.repository}"
    log_in = "log in (hf auth login, or set HF_TOKEN)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    reason = f"{type(error).__name__}: {line}" if line else type(error).__name__
    if isinstance(error, errors.HFValidationError):
        return f"{wanted} is no name of a model that the hub has: {line}. Expected hf:owner/name."
    if isinstance(error, errors.GatedRepoError):
        return f"{wanted} asks for a licence. Accept it on {page} with your account, and {log_in} as that account."
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{wanted.repository} has no revision {wanted.revision!r}. Expected a branch, a tag or a commit hash "
            "behind the @; without one, main is taken."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{wanted.repository} is not on {where}, or it is private. Check the spelling; for a private model, "
            f"{log_in} as an account that may read it."
        )
    if status in (401, 403):
        return (
            f"{where} refuses access to {wanted} ({status}). Check that the login is valid and may read it: {log_in}."
        )
    if status is not None:
        return f"{where} answers {status} for {wanted}. Try again later; what has been fetched is kept."
    if getattr(error, "errno", None) == errno.ENOSPC:
        return (
            f"The disk of the cache {constants.HF_HUB_CACHE} is full. Make room, or set HF_HOME to a folder on another "
            "disk."
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} does not have {wanted}. Unset it to fetch "
            "the model, or set HF_HOME to the folder that has it."
        )
    return (
        f"{wanted} cannot be fetched from {where} ({reason[:300]}). Check the network, proxies and HF_ENDPOINT, and "
        "try again: finished files are kept. With HF_HUB_OFFLINE=1 a model that the cache has is read from there."
    )
