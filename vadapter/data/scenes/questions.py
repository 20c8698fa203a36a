"""Questions about scenes, chosen so that no type of question can be answered without looking.

Every scene offers many questions; `Balancer` takes those whose answers were given least often so far in the split.
"""

import collections
import dataclasses
import random

from vadapter.data.scenes.world import CELLS, COLOURS, DIRECTIONS, GRID, KINDS, SIZES, Object, Scene

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
YES_NO = ("yes", "no")


@dataclasses.dataclass(frozen=True)
class Question:
    """`type` is the unit of balance: over a split, its answers come about equally often."""

    type: str
    text: str
    answer: str


def possible_answers(type_: str, max_objects: int = 2) -> tuple[str, ...]:
    """Returns the answers that questions of the type can have."""
    fixed = {
        "colour": COLOURS,
        "kind": KINDS,
        "size": SIZES,
        "place": CELLS,
        "start": CELLS,
        "end": CELLS,
        "direction": tuple(DIRECTIONS),
        "mover_kind": KINDS,
        "mover_colour": COLOURS,
    }
    if type_ in fixed:
        return fixed[type_]
    return NUMBERS[: max_objects + 1] if type_.startswith("count") else YES_NO


def _alone(scene: Scene, **wanted: str) -> bool:
    return sum(all(getattr(o, k) == v for k, v in wanted.items()) for o in scene.objects) == 1


def _near_miss(rng: random.Random, scene: Scene, o: Object) -> tuple[str, str]:
    """Returns (colour, kind) that differs from the object in one of the two and is not in the scene."""
    there = {(x.colour, x.kind) for x in scene.objects}
    while True:
        guess = (rng.choice(COLOURS), o.kind) if rng.random() < 0.5 else (o.colour, rng.choice(KINDS))
        if guess not in there:
            return guess


def image_questions(rng: random.Random, scene: Scene) -> list[Question]:
    """Returns all that can be asked about a still scene without being ambiguous."""
    found = []
    for o in scene.objects:
        if _alone(scene, kind=o.kind):
            found.append(Question("colour", f"what colour is the {o.kind}", o.colour))
        if _alone(scene, colour=o.colour):
            found.append(Question("kind", f"what is the {o.colour} object", o.kind))
        found.append(Question("kind", f"what is at the {o.place}", o.kind))
        found.append(Question("size", f"what size is the {o.colour} {o.kind}", o.size))
        found.append(Question("place", f"where is the {o.colour} {o.kind}", o.place))
        found.append(Question("exists", f"is there a {o.colour} {o.kind}", "yes"))
        found.append(Question("exists", "is there a {} {}".format(*_near_miss(rng, scene, o)), "no"))
    for type_, words in (("count_colour", COLOURS), ("count_size", SIZES)):
        counts = collections.Counter(o.colour if words is COLOURS else o.size for o in scene.objects)
        absent = [w for w in words if not counts[w]]
        for word in [*counts, *rng.sample(absent, min(1, len(absent)))]:
            found.append(Question(type_, f"how many objects are {word}", NUMBERS[counts[word]]))
    return found + _relations(scene)


def _relations(scene: Scene) -> list[Question]:
    found = []
    for a in scene.objects:
        for b in scene.objects:
            dy, dx = b.cell // GRID - a.cell // GRID, b.cell % GRID - a.cell % GRID
            names = f"the {a.colour} {a.kind}", f"the {b.colour} {b.kind}"
            for relation, distance in (("left of", dx), ("right of", -dx), ("above", dy), ("below", -dy)):
                if distance:
                    answer = "yes" if distance > 0 else "no"
                    found.append(Question("relation", f"is {names[0]} {relation} {names[1]}", answer))
    return found


def clip_questions(rng: random.Random, scene: Scene) -> list[Question]:
    """Returns all that can be asked about the motion in a clip."""
    del rng
    mover = scene.objects[0]
    assert scene.direction is not None and scene.end is not None
    name = f"the {mover.colour} {mover.kind}"
    found = [
        Question("direction", f"which direction does {name} move", scene.direction),
        Question("mover_kind", "what object moves", mover.kind),
        Question("mover_colour", "what colour is the object that moves", mover.colour),
        Question("start", f"where does {name} start", mover.place),
        Question("end", f"where does {name} end", CELLS[scene.end]),
    ]
    if len(scene.objects) > 1:
        found += [
            Question("moves", f"does the {o.colour} {o.kind} move", YES_NO[i > 0]) for i, o in enumerate(scene.objects)
        ]
    return found


class Balancer:
    """Chooses questions of a stream of scenes so that, in each type, the answers come about equally often."""

    def __init__(self, max_objects: int, questions: int):
        """`questions`: how many a scene gets, of different types; fewer if it has not as many types."""
        self._max_objects = max_objects
        self._questions = questions
        self._given: collections.Counter[tuple[str, str]] = collections.Counter()

    def choose(self, rng: random.Random, scene: Scene) -> list[Question]:
        """Returns the questions of the next scene, in random order."""
        offered = (clip_questions if scene.direction else image_questions)(rng, scene)
        rng.shuffle(offered)
        # An answer's count, in units of what every answer of the type should have had by now.
        offered.sort(key=lambda q: self._given[q.type, q.answer] * len(possible_answers(q.type, self._max_objects)))
        chosen: dict[str, Question] = {}
        for q in offered:
            if q.type not in chosen and len(chosen) < self._questions:
                chosen[q.type] = q
                self._given[q.type, q.answer] += 1
        questions = list(chosen.values())
        rng.shuffle(questions)
        return questions
