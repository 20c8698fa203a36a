"""Where the media that files of records name may lie: a list of others must not open any file of this machine."""

import dataclasses
import os
import posixpath
from collections.abc import Iterable, Sequence

from vadapter.base.paths import absolute, is_remote
from vadapter.data.reading.images import MediaError


@dataclasses.dataclass(frozen=True)
class MediaFolders:
    """Folders that media may be read from: those of the files that name them, and others that a user allows.

    Attributes:
        roots: the folders, each from the root on; addresses such as gs://bucket/photos too.
        setting: what a user sets to allow others, for messages.
    """

    roots: tuple[str, ...]
    setting: str = "media_folders"

    @classmethod
    def of(cls, files: Iterable[str], others: Sequence[str] | str, setting: str) -> "MediaFolders":
        """Makes it of the files with the records, whose folders are allowed, and of a user's `others`."""
        others = [others] if isinstance(others, str) else list(others)
        named = [*(os.path.dirname(file) for file in files), *(absolute(folder) for folder in others if folder)]
        return cls(tuple(dict.fromkeys(map(_plain, named))), setting)

    def refusal(self, path: str) -> str:
        """Returns why a path is not read by its name alone, or ""; `check` sees links too."""
        return "" if any(_inside(_plain(path), root) for root in self.roots) else self._outside(path, path)

    def check(self, path: str) -> None:
        """Raises `MediaError` where a path, or what its links lead to, lies outside of the folders."""
        if refusal := self.refusal(path):
            raise MediaError(refusal)
        if is_remote(path):
            return
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError) as e:  # a NUL, or what the file system cannot name
            raise MediaError(f"{path!r} names no file ({e})") from None
        if not any(_inside(real, os.path.realpath(root)) for root in self.roots if not is_remote(root)):
            raise MediaError(self._outside(f"{path} is a link to {real}, which", real))

    def _outside(self, what: str, path: str) -> str:
        allowed = ", ".join(self.roots)
        return (
            f"{what} is outside of the folders that media are read from ({allowed}); to allow it, set "
            f"{self.setting} = [{(_parent(path))!r}]"
        )


def holding(paths: Sequence[str]) -> list[str]:
    """Returns the folder that paths lie in together, or their own folders where that would be the root of all."""
    folders = sorted({_parent(path) for path in paths})
    try:
        together = "" if any(map(is_remote, folders)) else os.path.commonpath(folders)
    except ValueError:
        together = ""
    return folders if together in ("", "/") else [together]


def _parent(path: str) -> str:
    return _plain(path).rpartition("/")[0] or "/"


def _plain(path: str) -> str:
    """A path without `..` and doubled slashes; that of an address behind its scheme."""
    if not is_remote(path):
        return os.path.abspath(path)
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{posixpath.normpath('/' + rest).lstrip('/')}"


def _inside(path: str, root: str) -> bool:
    return is_remote(path) == is_remote(root) and path.startswith(root.rstrip("/") + "/")
