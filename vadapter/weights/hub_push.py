"""Puts a folder on Hugging Face's hub, with the login of `huggingface_hub`: HF_TOKEN, or that of `hf auth login`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vadapter.base.errors import UserError
from vadapter.weights import hub

# What earlier pushes may have left there; who pushes a model with fewer files would else leave parts of the old one.
_OURS = (
    *("adapter.safetensors", "bundle.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "modeling_vadapter.py", "processing_vadapter.py"),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a folder goes, by somebody who may write there.

    Attributes:
        repository: `owner/name`.
        private: whether a new repository is seen by its owner alone.
    """

    repository: str
    private: bool


def check(destination: str, private: bool) -> Target:
    """Asks the hub whether this login may write there. Changes nothing.

    Args:
        destination: `hf:owner/name`; what is pushed becomes a commit on its branch main.
        private: whether only the owner is to see it.

    Raises:
        UserError: the name has another form; `huggingface_hub` is not installed; there is no network or no login; the
            login may not write there; or `private` is asked of a repository that is public.
    """
    if not hub.is_hub_id(destination):
        raise UserError(f"Expected a repository of Hugging Face's hub as --push hf:owner/name; found {destination!r}.")
    wanted = hub.parse(destination)
    if wanted.file or "@" in destination:
        raise UserError(f"A push makes a commit on the branch main. Give the repository alone: hf:{wanted.repository}.")
    hub.check_installed(wanted)
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, or export without --push.")
    api = HfApi(library_name="vadapter")
    with _explained(wanted.repository):
        login = api.whoami()
        try:
            there = api.model_info(wanted.repository)
        except errors.RepositoryNotFoundError:
            there = None
    _check_rights(wanted.repository, login)
    if private and there is not None and not there.private:
        raise UserError(
            f"{wanted.repository} is there already and is public. Make it private on its page first, or push to "
            "another name."
        )
    return Target(wanted.repository, private)


def upload(target: Target, folder: str, files: Sequence[str], message: str) -> str:
    """Makes the repository if it is not there, and one commit of the files.

    Args:
        target: as `check` gives it.
        folder: that has the files.
        files: names in it; no others go.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="vadapter")
    with _explained(target.repository):
        # None: what the owner has chosen for new ones.
        api.create_repo(target.repository, private=target.private or None, exist_ok=True)
        made = api.upload_folder(
            repo_id=target.repository,
            folder_path=folder,
            commit_message=message,
            allow_patterns=list(files),
            delete_patterns=list(_OURS),
        )
    return made.commit_url


def _check_rights(repository: str, login: Mapping[str, Any]) -> None:
    """What the hub says of a login differs by its kind: what it does not say is found out at the upload."""
    owner, user = repository.split("/")[0].lower(), str(login.get("name", ""))
    groups = {str(each.get("name", "")).lower(): each for each in login.get("orgs") or ()}
    if owner != user.lower() and owner not in groups:
        names = ", ".join([user, *sorted(groups)])
        raise UserError(
            f"The login is that of {user}, which may not write to {repository}: expected the owner to be one of "
            f"{names}. Correct the name, or log in as another account (hf auth login, or set HF_TOKEN)."
        )
    token = (login.get("auth") or {}).get("accessToken") or {}
    role = groups.get(owner, {}).get("roleInOrg")
    if "read" in (token.get("role"), role) or (token.get("role") == "fineGrained" and not _grants(token, repository)):
        raise UserError(
            f"The login may read {repository} and not write to it. Make a token that may write, at "
            f"{_endpoint()}/settings/tokens, and log in with it (hf auth login, or set HF_TOKEN)."
        )


def _grants(token: Mapping[str, Any], repository: str) -> bool:
    """Whether a fine-grained token may write to a repository, or to all of its owner."""
    scopes = (token.get("fineGrained") or {}).get("scoped") or ()
    names = (repository.lower(), repository.split("/")[0].lower())
    return any(
        str((scope.get("entity") or {}).get("name", "")).lower() in names
        and "repo.write" in (scope.get("permissions") or ())
        for scope in scopes
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Makes a `UserError` of whatever the library raises."""
    from huggingface_hub import errors

    log_in = "log in (hf auth login, or set HF_TOKEN to a token that may write)"
    try:
        yield
    except errors.LocalTokenNotFoundError as e:
        raise UserError(f"Nobody is logged in, so nothing can be pushed to {repository}: {log_in}.") from e
    except errors.HFValidationError as e:
        raise UserError(f"{repository} is no name that the hub takes: {str(e).splitlines()[0]}") from e
    except Exception as e:
        status = getattr(getattr(e, "response", None), "status_code", None)
        line = " ".join(str(e).split())[:400].rstrip(".") or type(e).__name__
        if status == 401:
            raise UserError(f"{_endpoint()} does not know the login (401): {log_in}.") from e
        if status == 403:
            raise UserError(f"{_endpoint()} lets this login not write to {repository} (403): {log_in}.") from e
        raise UserError(f"{repository} could not be pushed to {_endpoint()} ({line}). Try again.") from e
