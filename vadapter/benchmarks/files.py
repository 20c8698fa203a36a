"""Official annotation files: found, read and checked. Everything that is wrong with one is a `UserError`."""

import collections
import csv
import dataclasses
import io
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from vadapter.base import json_text, local_files
from vadapter.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image or clip whose place its reader knows: inside an annotation file, or a file in a folder of its own.

    Attributes:
        name: what the record's `image` and messages call it. Records that show pictures of the same names show the
            same ones.
        read: gives the encoded file. Beam sends it to its workers, so it must be picklable (`functools.partial` is).
    """

    name: str
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of a benchmark: a picture or clip with its captions, or a question about it with its answers.

    Attributes:
        id: the official id as text: of the image or video for captions, of the question otherwise.
        media: name of the image's or video's file without its ending, which is looked for in the split's folders; None
            where `pictures` has what is shown.
        pictures: what is shown where it is no file of these folders: none, one or several, in the order of the prompt.
        options: what there is to choose from, in the order of the letters A, B, ...
        captions: all references.
        question: as written in the file.
        answers: all human answers in their order, duplicates kept. None for test splits without answers.
        plain_answers: the answers as people write them, where `answers` are stemmed (OKVQA).
        question_type, answer_type, domain: what a benchmark tells results apart by, or empty.
    """

    id: str
    media: str | None
    captions: tuple[str, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    plain_answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""
    domain: str = ""
    pictures: tuple[Picture, ...] = ()
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = (self.shown, self.question, *self.captions, *self.answers, *self.plain_answers, *self.options)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"{self.id}: {wrong[0]!r} is not text")

    @property
    def shown(self) -> str:
        """Name of what it shows; "" of nothing."""
        return " ".join(picture.name for picture in self.pictures) if self.media is None else self.media

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.id} ({self.shown})" if self.shown else self.id


def find(folder: epath.Path, name: str) -> epath.Path:
    """Returns the place of an official file: in the folder itself, or in its `annotations`.

    Raises:
        UserError: it is in neither.
    """
    places = [folder / name, folder / "annotations" / name]
    for place in places:
        if place.exists():
            return place
    raise UserError(
        f"Expected the official file {name} in {folder} or {places[1].parent}; found none. data/README.md says where "
        "it comes from; put it there, or correct manual_dir."
    )


def read_text(path: epath.Path) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is empty, or in another encoding.
    """
    try:
        data = local_files.content_of(path)
    except OSError as e:
        raise UserError(f"Expected an annotation file in {path}; {e}. Put the official file there.") from e
    if not data.strip():
        raise UserError(f"Expected an annotation file in {path}; found an empty one. Download it again.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding, such as Latin-1"
        raise UserError(
            f"Expected {path} in UTF-8, as it was published; byte {e.start} is not, so it is in {kind}. Download it "
            f"again, or convert it: iconv -f {'UTF-16' if kind == 'UTF-16' else 'LATIN1'} -t UTF-8."
        ) from e


def read_json(path: epath.Path, kind: type, unique: bool = False) -> Any:
    """Reads a JSON file whose outermost value is a `kind` (dict or list).

    Args:
        path: the file.
        kind: dict or list.
        unique: the keys of objects are ids, and none may come twice (Python's reader takes the last).

    Raises:
        UserError: as `read_text`; it is not valid JSON, of another kind, or a key comes twice.
    """

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            check_unique(path, (key for key, _ in pairs))
        return made

    try:
        value = json_text.loads(read_text(path), object_pairs_hook=check if unique else None)
    except json.JSONDecodeError as e:
        raise UserError(
            f"Expected JSON in {path}; it ends or breaks at line {e.lineno}, column {e.colno} ({e.msg}). The file is "
            "probably cut off: download it again."
        ) from e
    except UserError:
        raise
    except ValueError as e:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"Expected JSON in {path}; {e}. Download it again.") from e
    if not isinstance(value, kind):
        names = {dict: "an object {...}", list: "a list [...]"}
        raise UserError(
            f"Expected {names[kind]} in {path}; found {type(value).__name__}. It is another file than its name says."
        )
    return value


def read_json_lines(path: epath.Path) -> list[Any]:
    """Reads a file with one JSON value a line; empty lines do not count.

    Raises:
        UserError: as `read_text`; a line is not valid JSON.
    """
    values = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                values.append(json_text.loads(line))
            except ValueError as e:
                raise UserError(
                    f"Expected one JSON object a line in {path}; line {number} is none ({e}). The file is another than "
                    "its name says, or cut off: download it again."
                ) from e
    return values


def part(path: epath.Path, data: dict, key: str) -> Any:
    """Returns `data[key]`. Raises `UserError` if the file has no such part."""
    if key not in data:
        raise UserError(
            f"Expected {key!r} in {path}; found {', '.join(map(repr, data)) or 'nothing'}. It is another file than its "
            "name says, or not the official one."
        )
    return data[key]


def texts(value: Any) -> tuple[str, ...]:
    """Returns a list of texts as a tuple; none for null. `TypeError` for anything else, such as one text."""
    if value is not None and not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return tuple(value or ())


def check_rows(path: epath.Path, rows: Any, needed: Sequence[str], others: Iterable[str] = ()) -> list[dict]:
    """Checks records of an annotation file. Fields that the format does not have are named in one warning.

    Args:
        path: for messages.
        rows: what should be a list of objects.
        needed: fields that each must have.
        others: fields of the format that are not used.

    Raises:
        UserError: it is not a list of objects, there are none, or one lacks a field.
    """
    if not isinstance(rows, list) or not rows:
        raise UserError(f"Expected records with {', '.join(needed)} in {path}; found none. Download it again.")
    known = {*needed, *others}
    unknown: set[str] = set()
    for i, row in enumerate(rows):
        missing = [key for key in needed if not isinstance(row, dict) or row.get(key) is None]
        if missing:
            raise UserError(
                f"Expected {', '.join(needed)} in each record of {path}; record {i} has no {', '.join(missing)} "
                f"({str(row)[:120]}). Download the file again."
            )
        unknown |= row.keys() - known
    if unknown:
        logging.warning("%s: fields that are not used: %s", path, ", ".join(sorted(map(str, unknown))))
    return rows


def read_csv(path: epath.Path, needed: Sequence[str], others: Iterable[str] = ()) -> list[dict[str, str]]:
    """Reads a CSV file with a header line. Raises `UserError` as `read_text` and `check_rows`."""
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    for row in rows:
        row.pop(None, None)  # type: ignore[call-overload]  # cells beyond the header's
    return check_rows(path, rows, needed, others)


def check_unique(path: epath.Path, ids: Iterable[Any], what: str = "id") -> None:
    """Raises `UserError` naming ids that come more than once."""
    twice = [str(i) for i, count in collections.Counter(ids).items() if count > 1]
    if twice:
        raise UserError(
            f"Expected each {what} once in {path}; found {len(twice)} more than once, such as {', '.join(twice[:5])}. "
            "Scores would count them twice: use the official file, or remove the copies."
        )


def check_known(path: epath.Path, ids: Iterable[Any], known: Any, where: str) -> None:
    """Raises `UserError` naming ids of `path` that are not in `known`, the ids of `where`."""
    lost = [str(i) for i in ids if i not in known]
    if lost:
        raise UserError(
            f"Expected ids of {path} that are in {where} too; {len(lost)} are not, such as "
            f"{', '.join(dict.fromkeys(lost[:5]))}. The two are of different versions or splits: take both of one."
        )
