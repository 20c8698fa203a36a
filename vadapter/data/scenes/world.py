"""What can be in a scene, and how it is put in words. Plain Python: no pixels here.

A scene is 1..n objects in cells of a 3x3 grid. In a clip the first object of the list moves along its row or column and
the others stay. Words are lower case, and one word is one piece of the vocabulary.
"""

import dataclasses
import random

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
KINDS = SHAPES + tuple("0123456789")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SIZES = ("big", "small")
GRID = 3
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
NUM_CLASSES = (len(KINDS) + 1, len(COLOURS) + 1, len(SIZES) + 1) * len(CELLS)


@dataclasses.dataclass(frozen=True)
class Object:
    """One thing. `kind`, `colour` and `size` are words; `cell` is 0..8 in reading order, at the start of a clip."""

    kind: str
    colour: str
    size: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"

    @property
    def place(self) -> str:
        return CELLS[self.cell]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order; or, with a `direction`, a clip whose first object moves to the cell `end`."""

    objects: tuple[Object, ...]
    direction: str | None = None
    end: int | None = None


def _objects(rng: random.Random, cells: list[int]) -> tuple[Object, ...]:
    """Objects in these cells. No two share colour and kind, so each has a name; colours are shared more often than by
    chance, so that counting has something to count."""
    objects: list[Object] = []
    while len(objects) < len(cells):
        colour, kind = rng.choice(COLOURS), rng.choice(KINDS)
        if objects and rng.random() < 0.3:
            colour = objects[-1].colour
        if all((o.colour, o.kind) != (colour, kind) for o in objects):
            objects.append(Object(kind, colour, rng.choice(SIZES), cells[len(objects)]))
    return tuple(objects)


def _num_objects(rng: random.Random, most: int) -> int:
    """A single object in a quarter of the scenes (when there may be more), else any larger number."""
    return 1 if most == 1 or rng.random() < 0.25 else rng.randint(2, most)


def sample_image(rng: random.Random, max_objects: int) -> Scene:
    """Returns a random still scene with 1..max_objects objects."""
    n = _num_objects(rng, max_objects)
    return Scene(_objects(rng, sorted(rng.sample(range(len(CELLS)), n))))


def sample_clip(rng: random.Random, max_objects: int) -> Scene:
    """Returns a random clip: the first object moves one or two cells, the others are off its way."""
    direction = rng.choice(tuple(DIRECTIONS))
    dy, dx = DIRECTIONS[direction]
    moves = []
    for start in range(len(CELLS)):
        for steps in range(1, GRID):
            y, x = start // GRID + dy * steps, start % GRID + dx * steps
            if 0 <= y < GRID and 0 <= x < GRID:
                moves.append((start, [(start + (dy * GRID + dx) * s) for s in range(steps + 1)]))
    start, way = rng.choice(moves)
    free = [c for c in range(len(CELLS)) if c not in way]
    n = min(_num_objects(rng, max_objects), 1 + len(free))
    return Scene(_objects(rng, [start, *sorted(rng.sample(free, n - 1))]), direction, way[-1])


def facts(scene: Scene) -> str:
    """Returns the scene as a list of facts: `big red square top left ; small blue 7 centre ;`."""
    words = []
    for i, o in enumerate(scene.objects):
        moves = f" moves {scene.direction}" if scene.direction and i == 0 else ""
        words.append(f"{o.name} {o.place}{moves} ;")
    return " ".join(words)


def labels(scene: Scene) -> list[int]:
    """Returns (kind, colour, size) of each cell in reading order, 27 classes; 0 is "nothing there"."""
    classes = [0] * (3 * len(CELLS))
    for o in scene.objects:
        classes[3 * o.cell : 3 * o.cell + 3] = [
            KINDS.index(o.kind) + 1,
            COLOURS.index(o.colour) + 1,
            SIZES.index(o.size) + 1,
        ]
    return classes


def captions(scene: Scene, paraphrases: int = 4) -> list[str]:
    """Returns reference captions; the first is the canonical one."""
    return (_clip_captions(scene) if scene.direction else _image_captions(scene))[:paraphrases]


def _image_captions(scene: Scene) -> list[str]:
    objects = scene.objects
    return [
        " and ".join(f"a {o.name} {o.place}" for o in objects),
        "there is " + " and ".join(f"a {o.name} at the {o.place}" for o in objects),
        " , ".join(f"at the {o.place} a {o.name}" for o in objects),
        "the picture shows " + " and ".join(f"a {o.name} at the {o.place}" for o in objects),
    ]


def _clip_captions(scene: Scene) -> list[str]:
    mover, others = scene.objects[0], scene.objects[1:]
    assert scene.end is not None
    return [
        " and ".join([f"a {mover.name} moves {scene.direction}"] + [f"a {o.name} stays" for o in others]),
        "there is " + " and ".join([f"a {mover.name} that moves {scene.direction}"] + [f"a {o.name}" for o in others]),
        " , ".join([f"a {mover.name} goes {scene.direction}"] + [f"a {o.name} stays {o.place}" for o in others]),
        f"the {mover.name} moves from the {mover.place} to the {CELLS[scene.end]}"
        + "".join(f" and the {o.name} stays" for o in others),
    ]
