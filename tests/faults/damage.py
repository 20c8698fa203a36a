"""Damage to the files of a checkpoint, as disks, copies and people do it. Of a seed, so that it can be done again."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path


def files(checkpoint: Path) -> list[Path]:
    """Returns all files of a checkpoint, sorted by their path in it."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def checkpoints(model_dir: Path) -> list[Path]:
    """Returns the checkpoint folders of a run, the newest last."""
    found = (path for path in model_dir.glob("checkpoint_*") if path.name.removeprefix("checkpoint_").isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint_")))


def delete(file: Path, chance: random.Random) -> None:
    """The file is gone."""
    del chance
    file.unlink()


def empty(file: Path, chance: random.Random) -> None:
    """The file has no bytes."""
    del chance
    file.write_bytes(b"")


def cut(file: Path, chance: random.Random) -> None:
    """The file ends early, anywhere."""
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))] if content else b"")


def flip(file: Path, chance: random.Random) -> None:
    """One bit is another. An empty file gets a byte."""
    content = bytearray(file.read_bytes() or b"\0")
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def overwrite(file: Path, chance: random.Random) -> None:
    """64 bytes are others."""
    content = bytearray(file.read_bytes())
    start = chance.randrange(max(1, len(content) - 63))
    content[start : start + 64] = chance.randbytes(64)
    file.write_bytes(content)


def zero(file: Path, chance: random.Random) -> None:
    """All bytes are 0, as a file system leaves what it did not write before the power went."""
    del chance
    file.write_bytes(bytes(file.stat().st_size))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    kind.__name__: kind for kind in (delete, empty, cut, flip, overwrite, zero)
}


def damage_one(checkpoint: Path, seed: int) -> str:
    """Damages one file of a checkpoint, chosen by the seed as the kind is; returns such as "cut params/_METADATA"."""
    chance = random.Random(seed)
    file, kind = chance.choice(files(checkpoint)), chance.choice(sorted(KINDS))
    KINDS[kind](file, chance)
    return f"{kind} {file.relative_to(checkpoint)}"


def empty_folder(checkpoint: Path) -> None:
    """The checkpoint is a folder with nothing in it."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
