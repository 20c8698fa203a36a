"""A benchmark is one record. `table` has those of data/README.md; a user's own module registers more.

from vadapter.benchmarks import protocols, table
from vadapter.benchmarks.benchmark import Benchmark, Split

table.register(
    Benchmark(
        name="zoo",
        media="image",
        question=True,
        read=read_zoo,
        splits={"test": Split(("zoo.json",), ("photos",))},
        evaluated="test",
        protocol=protocols.questions("id"),
    )
)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from etils import epath

from vadapter.base.errors import UserError
from vadapter.benchmarks.files import Item
from vadapter.benchmarks.protocols import Protocol

Reader = Callable[[epath.Path, Sequence[str], str], list[Item]]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a benchmark.

    Attributes:
        files: official annotation files; the reader knows their roles.
        folders: where the media lie, relative to manual_dir; all are looked in, the first that has a file wins. None
            where the items bring their `pictures`.
        size: rows of the official split; None where it is not known exactly.
        part: what the reader needs to know beside the names.
        note: what the catalogue says of it.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    size: int | None = None
    part: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: where its files are, how they are read, how it is asked, and how predictions are scored.

    Attributes:
        name: of its task and in front of its scores; a part of file names.
        media: image or video.
        question: rows are questions; else captions.
        read: reads the items of a split, `(manual_dir, Split.files, Split.part) -> items`.
        splits: by name. The split `train` gives the examples before a question.
        evaluated: the split that papers report and whose references are public.
        protocol: scores and submission; it takes the benchmark's name.
        prompt: a name in data/prompts or a template; "" is the paper's of the kind.
        prompt_with_examples: the same where examples precede the question.
        site: where the files come from, for the catalogue.
        example: path of an image or video in manual_dir, for the catalogue.
        files_note, media_note: what else the catalogue says of the annotation files and of the media.
    """

    name: str
    media: Literal["image", "video"]
    question: bool
    read: Reader
    splits: Mapping[str, Split]
    evaluated: str
    protocol: Protocol
    prompt: str = ""
    prompt_with_examples: str = ""
    site: str = ""
    example: str = ""
    files_note: str = ""
    media_note: str = ""

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum():
            raise UserError(
                f"Expected a benchmark's name of letters, digits and _, as it is a part of file names; found "
                f"{self.name!r}."
            )
        if self.media not in ("image", "video"):
            raise UserError(f"Expected the media of {self.name} to be 'image' or 'video'; found {self.media!r}.")
        if self.evaluated not in self.splits:
            raise UserError(
                f"Expected the evaluated split of {self.name} to be one of {', '.join(self.splits)}; found "
                f"{self.evaluated!r}."
            )
        object.__setattr__(self, "protocol", dataclasses.replace(self.protocol, name=self.name))

    def default_prompt(self, examples: bool) -> str:
        """The prompt that it is asked with where none is given, with or without examples before the question."""
        if not self.question:
            return self.prompt or "caption"
        if examples:
            return self.prompt_with_examples or f"{self.media}_question_examples"
        return self.prompt or f"{self.media}_question"
