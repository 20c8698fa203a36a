"""What a sweep is: arms, the settings of each, seeds; and which setting of an arm is chosen. It starts nothing."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vadapter.base import json_text
from vadapter.base.errors import UserError

DEFAULT = "default"  # name of an arm's setting where nothing is swept
FILE = "sweep.json"
Grid = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of an arm's grid: the value of each swept name, as text."""

    values: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Short and readable, fit for a folder: `learning_rate=1e-4`. A name's last part is kept where it is unique."""
        last = [name.split("/")[-1].split(".")[-1] for name, _ in self.values]
        short = [part if last.count(part) == 1 else name for part, (name, _) in zip(last, self.values, strict=True)]
        texts = [f"{name}={value}" for name, (_, value) in zip(short, self.values, strict=True)]
        return re.sub(r"[^\w.+=,-]+", "_", ",".join(texts)) or DEFAULT


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the things that a sweep compares.

    Attributes:
        name: also its folder's.
        gin_files: its own, before those that all arms share.
        bindings: its own, `NAME=VALUE` each, over those that all arms share.
        grid: the values of each swept name; the settings are their product.
    """

    name: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...] = ()
    grid: Grid = dataclasses.field(default_factory=dict)

    def settings(self) -> list[Setting]:
        """Returns the grid's points, the last name's values fastest."""
        names = list(self.grid)
        return [Setting(tuple(zip(names, point, strict=True))) for point in itertools.product(*self.grid.values())]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training of a sweep: an arm at a setting with a seed."""

    arm: Arm
    setting: Setting
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Tells the runs of a sweep apart."""
        return self.arm.name, self.setting.name, self.seed

    @property
    def folder(self) -> str:
        """Its MODEL_DIR below the sweep's folder."""
        return f"{self.arm.name}/{self.setting.name}/seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm.name} {self.setting.name} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Arms x settings x seeds.

    The setting of an arm is chosen by the validation loss of the first seed, or with `all_seeds` by the mean over all;
    the other seeds are run at the chosen setting only. Nothing else has a part in the choice.

    Attributes:
        arms: at least one.
        seeds: different numbers; the first chooses.
        gin_files, bindings: those that all arms share. `{seed}` in them, and in an arm's, is the run's seed.
        search_paths: more folders of gin files.
        modules: a user's modules that every run imports.
        rungs: early stop: (step, keep) by rising step; the best `keep` settings of each arm go on from there.
        all_seeds: whether every setting is run with every seed.
        validation: name of the evaluation whose loss chooses.
        test: `EVALUATION/SCALAR` of the figure to show beside the validation loss; "" is none.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0,)
    gin_files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    search_paths: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    rungs: tuple[tuple[int, int], ...] = ()
    all_seeds: bool = False
    validation: str = "val"
    test: str = ""

    def __post_init__(self):
        _check_different("arms", [arm.name for arm in self.arms])
        _check_different("seeds", list(map(str, self.seeds)))
        for arm in self.arms:
            if not re.fullmatch(r"[\w.-]+", arm.name) or set(arm.name) <= {"."}:
                raise UserError(f"An arm's name is letters, digits, '_', '-' and '.'; found {arm.name!r}. Rename it.")
            _check_different(f"settings of the arm {arm.name}", [setting.name for setting in arm.settings()])
        steps = [step for step, _ in self.rungs]
        if steps != sorted(set(steps)) or any(step < 1 or keep < 1 for step, keep in self.rungs):
            raise UserError(
                f"Early stop takes rising steps and numbers of settings to keep, all 1 or more; found {self.rungs}."
            )

    @property
    def choosing(self) -> tuple[int, ...]:
        """The seeds whose validation loss chooses the settings."""
        return self.seeds if self.all_seeds else self.seeds[:1]

    def runs(self, settings: Mapping[str, Sequence[Setting]], seeds: Sequence[int]) -> list[Run]:
        """Returns the runs of each arm's settings (by its name), seed after seed."""
        return [Run(arm, s, seed) for seed in seeds for arm in self.arms for s in settings.get(arm.name, ())]

    def files_of(self, arm: Arm, seed: int) -> list[str]:
        """Returns an arm's gin files, its own first."""
        return [_seeded(file, seed) for file in (*arm.gin_files, *self.gin_files)]

    def bindings_of(self, run: Run, model_dir: str) -> list[str]:
        """Returns all bindings of a run, the stronger ones last."""
        given = [*self.bindings, *run.arm.bindings, *(f"{name}={value}" for name, value in run.setting.values)]
        return [*(_seeded(text, run.seed) for text in given), f"MODEL_DIR={model_dir!r}", f"SEED={run.seed}"]


def _seeded(text: str, seed: int) -> str:
    return text.replace("{seed}", str(seed))


def _check_different(what: str, names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise UserError(f"A sweep needs at least one of its {what}, with different names; found {found}. Change them.")


# --- the choice -----------------------------------------------------------------------------------------------------

Loss = Callable[[Run], float | None]


def ranked(sweep: Sweep, arm: Arm, settings: Sequence[Setting], loss: Loss) -> list[tuple[float, Setting]]:
    """Returns (mean loss of the choosing seeds, setting), the best first; infinite where a loss is not known."""
    scored = []
    for setting in settings:
        losses = [loss(Run(arm, setting, seed)) for seed in sweep.choosing]
        known = [x for x in losses if x is not None and math.isfinite(x)]
        scored.append((sum(known) / len(known) if len(known) == len(losses) else math.inf, setting))
    return sorted(scored, key=lambda pair: pair[0])


def edges(arm: Arm, chosen: Setting) -> list[str]:
    """Returns, for each swept number whose chosen value is the least or largest that was tried, a sentence."""
    found = []
    for name, value in chosen.values:
        try:
            tried = [float(text) for text in arm.grid[name]]
        except ValueError:
            continue
        if len(tried) > 1 and float(value) in (min(tried), max(tried)):
            which = "least" if float(value) == min(tried) else "largest"
            found.append(f"{name}={value} is the {which} value tried: the best may lie beyond it.")
    return found


# --- the record of a sweep ------------------------------------------------------------------------------------------


def to_json(sweep: Sweep) -> dict[str, Any]:
    """Returns the content of `sweep.json`."""
    return json.loads(json.dumps(dataclasses.asdict(sweep)))


def check_same(sweep: Sweep, out: Path) -> None:
    """Refuses a folder that has another sweep. Arms, values and seeds may be added: what was trained stays as it is.

    Raises:
        UserError: something differs; it says what.
    """
    path = out / FILE
    if not path.is_file():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} has files and no {FILE}, so it is no sweep's folder. Give another --out.")
        return
    try:
        former = json_text.read(path)
        wrong = list(_differences(former, to_json(sweep)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}). Give another --out, or the {FILE} that was there."
        ) from error
    if wrong:
        raise UserError(
            f"{out} has another sweep: {'; '.join(wrong)}. Arms, values and seeds can be added to a sweep, and nothing "
            "else be changed. Give another --out, or what it was begun with."
        )


def _differences(former: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    arms = {arm["name"]: arm for arm in now["arms"]}
    for arm in former["arms"]:
        name, mine = arm["name"], arms.get(arm["name"])
        if mine is None:
            yield f"it has the arm {name}, which was not given"
            continue
        for field in ("gin_files", "bindings"):
            if arm[field] != mine[field]:
                yield f"{field} of the arm {name} were {_listed(arm[field])} and are {_listed(mine[field])}"
        if list(arm["grid"]) != list(mine["grid"]):
            yield f"the arm {name} was swept over {_listed(arm['grid'])} and is over {_listed(mine['grid'])}"
        for key in arm["grid"].keys() & mine["grid"].keys():
            if lost := [value for value in arm["grid"][key] if value not in mine["grid"][key]]:
                yield f"the arm {name} had {key}={_listed(lost)}, which was not given"
    if now["seeds"][: len(former["seeds"])] != former["seeds"]:
        yield f"seeds were {_listed(former['seeds'])} and are {_listed(now['seeds'])}"
    for field in now.keys() - {"arms", "seeds"}:
        if former[field] != now[field]:
            yield f"{field} was {_listed(former[field])} and is {_listed(now[field])}"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) or "(none)" if isinstance(value, list | dict) else str(value) or "(none)"


def check_configuration(folder: Path, text: str) -> None:
    """Refuses a setting whose gin files say something else than when it was begun (its `config.gin`).

    Args:
        folder: of the setting.
        text: all that is configured.

    Raises:
        UserError: it differs; the first line that does is shown.
    """
    path = folder / "config.gin"
    if path.is_file():
        former, now = path.read_text().splitlines(), text.splitlines()
        if former != now:
            before, after = next(pair for pair in itertools.zip_longest(former, now, fillvalue="") if len({*pair}) > 1)
            raise UserError(
                f"The gin files of {folder} changed since it was begun: {before.strip()!r} is now {after.strip()!r}. "
                "Give another --out, or the files as they were."
            )
