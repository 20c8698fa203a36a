"""What a data set is made of: the items of a split and the images or videos that they show."""

import dataclasses
import functools
import logging
from collections.abc import Iterable
from concurrent import futures

from etils import epath

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.benchmarks import table
from vadapter.benchmarks.files import Item, Picture

_LOOK_UPS = 32  # at once: in a bucket each takes the time of a request


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record to be written.

    Attributes:
        item: what the annotation file says.
        pictures: the images or videos that are written with it: none where `at` is another record, or where it shows
            nothing.
        at: index of the record whose files this one shows: its own, or that of the first record with the same ones.
    """

    item: Item
    pictures: tuple[Picture, ...]
    at: int


def read_items(name: str, split: str, manual_dir: str) -> list[Item]:
    """Reads the annotations of a split of a benchmark.

    Raises:
        UserError: a file is missing or is not in the official format.
    """
    official, folder = table.split(name, split), epath.Path(manual_dir).expanduser()
    if not manual_dir or not folder.is_dir():
        raise UserError(
            f"Expected in manual_dir the folder with the official files of {name} ({', '.join(official.files)}); found "
            f"{'nothing' if not manual_dir else f'no folder {folder}'}. data/README.md says what goes there."
        )
    try:
        items = table.benchmark(name).read(folder, official.files, official.part)
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"Expected the official format in {' and '.join(official.files)} of {name} ({folder}); a field has another "
            f"type than there: {e}. Download the files again."
        ) from e
    if official.size is not None and len(items) != official.size:
        logging.warning(
            "%s %s has %d rows; the official split has %d, so scores do not compare with others'",
            *(name, split, len(items), official.size),
        )
    return items


def entries(name: str, split: str, manual_dir: str, max_bad_share: float = 0.01) -> tuple[list[Entry], list[str]]:
    """Pairs the items of a split with their files.

    Items whose file is missing or empty, and captioned ones without captions, are left out and named in the log.

    Args:
        name: of the benchmark.
        split: of it.
        manual_dir: folder with the official files and the media.
        max_bad_share: share of the items that may be left out.

    Returns:
        The records to be written in the order of the annotations, and what was left out, each with the reason.

    Raises:
        UserError: as `read_items`; more than `max_bad_share` or all of the items are left out.
    """
    items = read_items(name, split, manual_dir)
    official, root = table.split(name, split), epath.Path(manual_dir).expanduser()
    found = _paths(root, official.folders, {item.media for item in items if item.media is not None})
    references = any(item.captions or item.answers for item in items)
    made: list[Entry] = []
    left_out: list[str] = []
    first: dict[str, int] = {}
    for item in items:
        reason = "" if item.media is None or item.media in found else "no file, or an empty one"
        if references and not (item.captions or item.answers):
            reason = "no captions or answers"
        if reason:
            left_out.append(f"{item.name}: {reason}")
            logging.warning("%s %s: left out %s", name, split, left_out[-1])
            continue
        at = first.setdefault(item.shown, len(made)) if item.shown else len(made)
        pictures = item.pictures if item.media is None else (found[item.media],)
        made.append(Entry(item, pictures if at == len(made) else (), at))
    if not made or len(left_out) > max_bad_share * len(items):
        where = ", ".join(str(root / folder) for folder in official.folders) or root
        raise UserError(
            f"Expected files for at least {1 - max_bad_share:.1%} of the {len(items)} rows of {name} ({split}) in "
            f"{where}; {len(left_out)} rows cannot be used, first {'; '.join(left_out[:3])}. Add the files, or allow "
            "more to be left out (max_bad_share)."
        )
    return made, left_out


def of_file(path: epath.Path, name: str = "") -> Picture:
    """The picture that a file is; its name is the file's without ending, unless one is given."""
    return Picture(name or path.stem, functools.partial(local_files.content_of, str(path)))


def _paths(root: epath.Path, folders: Iterable[str], wanted: set[str]) -> dict[str, Picture]:
    """Finds files by their names without ending. The first folder that has one wins; empty files do not count."""
    found: dict[str, Picture] = {}
    with futures.ThreadPoolExecutor(_LOOK_UPS) as pool:
        for folder in folders:
            if (root / folder).is_dir():
                paths = [p for p in (root / folder).iterdir() if p.stem in wanted and p.stem not in found]
                for path, size in zip(paths, pool.map(lambda p: p.stat().length, paths), strict=True):
                    if size:
                        found.setdefault(path.stem, of_file(path))
    return found
