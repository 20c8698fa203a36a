"""Questions about emoji, made of their names and groups.

The answers of the questions with yes and no are balanced: each group and each name is asked about as often where the
answer is yes as where it is no. So nothing can be answered without looking.
"""

import random
from collections.abc import Sequence

from emoji import Picture

GROUP = "Which group does this belong to?"
KIND = "What kind of thing is this?"
NAME = "What is this called?"
IS_GROUP = "Does this belong to {}?"
IS_NAME = 'Is this called "{}"?'


def plain(text: str) -> str:
    """A category as words: "Food & Drink" is "food and drink", "animal-mammal" is "animal mammal"."""
    return text.lower().replace("&", "and").replace("-", " ")


def others(values: Sequence[str], draw: random.Random) -> list[str]:
    """Returns for each value a wrong one; each value comes as often as it is there.

    Raises:
        ValueError: one value is more than half of all, so that it cannot be.
    """
    order = list(range(len(values)))
    draw.shuffle(order)
    order.sort(key=lambda i: values[i])
    most = max((values.count(v) for v in set(values)), default=0)
    if 2 * most > len(values):
        raise ValueError(f"{most} of {len(values)} values are the same.")
    wrong = [""] * len(values)
    for at, i in enumerate(order):
        wrong[i] = values[order[(at + most) % len(order)]]
    for _ in range(10 * len(values)):  # so that a value's wrong ones are not always the same
        a, b = draw.randrange(len(values)), draw.randrange(len(values))
        if wrong[b] != values[a] and wrong[a] != values[b]:
            wrong[a], wrong[b] = wrong[b], wrong[a]
    return wrong


def questions(pictures: Sequence[Picture], seed: int = 0) -> list[tuple[Picture, str, str]]:
    """Returns (picture, question, answer): seven for each picture of one split and hand. Skin tones are left out."""
    draw = random.Random(seed)
    plains = [p for p in pictures if p.caption == p.concept]
    groups, names = [plain(p.group) for p in plains], [p.concept for p in plains]
    found = []
    for at, picture in enumerate(plains):
        found += [(picture, GROUP, groups[at]), (picture, KIND, plain(picture.kind)), (picture, NAME, names[at])]
    for form, values in ((IS_GROUP, groups), (IS_NAME, names)):
        for picture, right, wrong in zip(plains, values, others(values, draw), strict=True):
            found += [(picture, form.format(right), "yes"), (picture, form.format(wrong), "no")]
    draw.shuffle(found)
    return found
