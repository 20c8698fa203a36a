"""What a row of a benchmark must be."""

import dataclasses


@dataclasses.dataclass
class Expected:
    """A row: its id, and the captions, or the question and answers."""

    id: str
    references: list[str]
    question: str = ""
    extra: dict[str, str] = dataclasses.field(default_factory=dict)
