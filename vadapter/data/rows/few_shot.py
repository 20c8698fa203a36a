"""Text-only examples before a question: the paper's "zero-shot" prompts begin with four random pairs of training data.

They show the form of an answer, not an image. The paper draws them at random and does not say whether anew for each
question; here they are by default, by a random number generator that is seeded with (seed, question id).
"""

import collections
import dataclasses
import random
from collections.abc import Sequence
from typing import Protocol

from vadapter.base.errors import UserError
from vadapter.data.rows import prompts


class Pairs(Protocol):
    """Questions with answers, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, str, str, str]:
        """Returns (question id, image, question, answer)."""
        ...


@dataclasses.dataclass(frozen=True)
class Examples:
    """Chooses the examples of a question and writes them.

    A question is never its own example, nor is the same question about the same image.

    Attributes:
        pairs: of the training split.
        shots: examples before a question.
        seed: of the choice.
        fixed: the same examples before all questions (but one that would be its own).
        template: a name in data/prompts, or a template with `<question>` and `<answer>`.

    Raises:
        UserError: there are too few pairs, or the template is not one.
    """

    pairs: Pairs = dataclasses.field(repr=False)
    shots: int = 4
    seed: int = 0
    fixed: bool = False
    template: str = "text_example"

    def __post_init__(self) -> None:
        # One more is drawn for a question that may be among them; of small sets all.
        if self.shots < 1 or len(self.pairs) <= self.shots:
            raise UserError(
                f"Expected 1 to {max(len(self.pairs) - 1, 0)} examples before a question, fewer than the "
                f"{len(self.pairs)} pairs of the training split; found shots = {self.shots}. Change shots; 0 asks "
                "without examples."
            )
        prompts.resolve_example(self.template)

    def choose(self, name: str, image: str = "", question: str = "") -> list[tuple[str, str]]:
        """Returns (question, answer) of the examples.

        Args:
            name: id of the question that is asked.
            image: that it is about.
            question: its text.
        """
        generator = random.Random(f"examples {self.seed}" if self.fixed else f"examples {self.seed} {name}")
        chosen: list[tuple[str, str]] = []
        for index in generator.sample(range(len(self.pairs)), min(len(self.pairs), 4 * self.shots + 8)):
            other, its_image, its_question, answer = self.pairs[index]
            same = other == name or (
                its_image == image and prompts.bare_question(its_question) == prompts.bare_question(question)
            )
            if not same:
                chosen.append((its_question, answer))
            if len(chosen) == self.shots:
                break
        return chosen

    def text(self, name: str, image: str = "", question: str = "") -> str:
        """Returns the examples as text, with a space between two."""
        template = prompts.resolve_example(self.template)
        return " ".join(prompts.fill_example(template, *pair) for pair in self.choose(name, image, question))


def usual(answers: Sequence[str]) -> str:
    """Returns the answer that most people gave, the first of equals; "" of none."""
    return collections.Counter(answers).most_common(1)[0][0] if answers else ""
