"""Cloud Storage: whether it can be used, said before minutes of work are spent."""

import functools

from vadapter.base.errors import UserError

_SCHEME = "gs://"


def check(path: str) -> None:
    """Does nothing for a path that is no gs:// address.

    Raises:
        UserError: a package is missing, there is no such bucket, or there are no rights to it.
    """
    if path.startswith(_SCHEME):
        _reach(path.removeprefix(_SCHEME).split("/")[0])


@functools.lru_cache
def _reach(bucket: str) -> None:
    """Asks for what Orbax asks for: its own error comes later, and names neither the package nor the role."""
    try:
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError as e:
        raise UserError(
            f"{_SCHEME}{bucket} needs google-cloud-storage, which is not installed ({e}). Install it with "
            "`pip install 'vadapter[gcs]'`."
        ) from e
    try:
        storage.Client().get_bucket(bucket)
    except NotFound as e:
        raise UserError(f"There is no bucket {_SCHEME}{bucket}. Correct the address, or create it.") from e
    except Forbidden as e:
        raise UserError(
            f"{_SCHEME}{bucket} may not be used ({e.message}). Give this account, or the service account of these "
            "machines, the roles storage.objectUser and storage.legacyBucketReader on it."
        ) from e
    except (GoogleAPIError, GoogleAuthError, OSError) as e:
        raise UserError(
            f"{_SCHEME}{bucket} cannot be reached ({e}). Check the network, and log in where this is no machine of "
            "Google Cloud: gcloud auth application-default login."
        ) from e
