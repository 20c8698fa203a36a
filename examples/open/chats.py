"""Conversations about two emoji each, made of their names: what the part `tune` trains on.

Each asks which of the two pictures has a name, and then what the other one is. As often the first as the second has
it, so the order of the pictures must be known to answer.
"""

import random
from collections.abc import Sequence
from typing import Any

WHICH = 'Which picture is called "{}", the first or the second?'
OTHER = "What is the other one called?"
PLACES = ("the first", "the second")

Row = dict[str, Any]


def chats(captions: Sequence[Row], seed: int = 0) -> list[Row]:
    """Returns conversations in LLaMA-Factory's layout, `messages` and `images`: one for each two rows.

    Args:
        captions: rows with `image` and `caption`; those with the same caption never meet.
        seed: draws which meet.
    """
    draw = random.Random(seed)
    rows = list(captions)
    draw.shuffle(rows)
    made = []
    for number, pair in enumerate(zip(rows[::2], rows[1::2], strict=False)):
        if pair[0]["caption"] == pair[1]["caption"]:
            continue
        asked = number % 2
        turns = (
            ("user", f"<image><image>{WHICH.format(pair[asked]['caption'])}"),
            ("assistant", PLACES[asked]),
            ("user", OTHER),
            ("assistant", pair[1 - asked]["caption"]),
        )
        made.append(
            {
                "id": f"{pair[0]['id']} and {pair[1]['id']}",
                "messages": [{"role": role, "content": text} for role, text in turns],
                "images": [row["image"] for row in pair],
            }
        )
    return made
