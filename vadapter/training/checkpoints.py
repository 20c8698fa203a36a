"""Checkpoints of a run: `MODEL_DIR/checkpoint_<step>/{params,optimizer,run,checksums.json}`.

`params` is the trainable tree, `ema` its moving average where the run keeps one, `optimizer` the optimizer state and
step, `run` a JSON object: where in the data the run
is, and which frozen weights it used, by reference. Frozen weights themselves are never in it. A checkpoint is compared
with its checksums before it is chosen; one that is damaged is left out, and the line that says so is the only sign.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from vadapter.base import buckets, checksums, lost_processes, trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.base.quiet import quiet
from vadapter.training import best, integrity, run_record
from vadapter.training.freezing import named_leaves
from vadapter.training.integrity import DamagedError
from vadapter.training.state import TrainState

FORMAT = run_record.FORMAT
# A device that needs a part of an array reads whole chunks of the file.
_CHUNK_BYTES = 1 << 26
# What a process holds on the host while it reads: no more than this, however large its devices' parts are.
_READ_AHEAD_GB = 16
_DIRECTORY = re.compile(r"checkpoint_(\d+)")
# What TensorStore says where a bucket does not answer: that is no damage.
_PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
BEST, EMA = "best", "ema"
_INSTEAD = "Put it back from a copy, or use another checkpoint."
_UNFINISHED = re.compile(r"checkpoint_\d+\.orbax-checkpoint-tmp.*")


def steps(model_dir: str) -> list[int]:
    """Returns the steps of the finished checkpoints in a folder, ascending; empty if there is no such folder.

    Raises:
        UserError: the folder is in a bucket that cannot be reached.
    """
    buckets.check(model_dir)
    return [step for step in _named(model_dir) if integrity.is_finished(_path(model_dir, step))]


def _named(model_dir: str) -> list[int]:
    folder = epath.Path(model_dir)
    found = [_DIRECTORY.fullmatch(p.name) for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(m.group(1)) for m in found if m)


def _path(model_dir: str, step: int) -> epath.Path:
    return epath.Path(model_dir) / f"checkpoint_{step}"


def newest(model_dir: str) -> int | None:
    """Returns the newest whole checkpoint; None if there is none. A line on stderr says which were left out, and why.

    All processes of a run call it together.

    Raises:
        UserError: there are checkpoints, and all of them are damaged; or as `steps`.
    """
    buckets.check(model_dir)
    # In a bucket a folder without the mark is one that is, or was, being written.
    listed = steps(model_dir) if is_remote(model_dir) else _named(model_dir)
    wrong: dict[int, str] = {}
    for step in sorted(set().union(*integrity.of_all_processes(listed)), reverse=True):
        why = integrity.damage(_path(model_dir, step))
        if why is None:
            for other, reason in wrong.items():
                integrity.tell(
                    f"{model_dir}: left out checkpoint_{other}, which is damaged ({reason}). "
                    f"The newest whole one is checkpoint_{step}."
                )
            return step
        wrong[step] = why
    if wrong:
        reasons = "; ".join(f"checkpoint_{step}: {why}" for step, why in wrong.items())
        raise DamagedError(
            f"{model_dir} has no whole checkpoint ({reasons}). Put one back from a copy; to begin anew, remove these "
            "folders or choose another MODEL_DIR."
        )
    return None


def _delete(folder: epath.Path) -> None:
    try:
        folder.rmtree()
    except FileNotFoundError:
        if not is_remote(folder):
            raise
        # A bucket whose answer was lost is asked again, and has no such file any more. The rest of the folder is there.
        folder.rmtree(missing_ok=True)


def split(path: str) -> tuple[str, int | None]:
    """Returns the MODEL_DIR of a path, and the step that it names: None where it is no `checkpoint_<step>` folder."""
    path = path.rstrip("/")
    if match := _DIRECTORY.fullmatch(path.rsplit("/", 1)[-1]):
        return path[: -len(match.group(0))].rstrip("/") or ".", int(match.group(1))
    return path, None


def locate(path: str, step: int | str | None = None) -> tuple[str, int]:
    """Finds a checkpoint that is whole. All processes of a run call it together.

    Args:
        path: a MODEL_DIR, or one of its `checkpoint_<step>` folders.
        step: which one, or `best`: the one that the run says is the best; default the newest whole one of a MODEL_DIR.

    Returns:
        (MODEL_DIR, step).

    Raises:
        UserError: there is none, the one that was asked for is damaged, the run says of none that it is the best, or as
            `newest`.
    """
    path, named = split(path)
    step = named if step is None else step
    if isinstance(step, str):
        if step != BEST:
            raise UserError(f"The step is {step!r}; expected a number, or {BEST!r} for the best checkpoint of the run.")
        step = best.read(path)
    found = newest(path) if step is None else step
    there = steps(path) if step is not None else []
    if found is None or (step is not None and step not in _named(path)):
        wanted = "A checkpoint" if step is None else f"checkpoint_{step}"
        nothing = "no checkpoint" if epath.Path(path).exists() else "no such folder"
        names = ", ".join(f"checkpoint_{s}" for s in there) or nothing
        raise UserError(
            f"{wanted} was expected in {path}; found {names}. Train that run first, or change the path or the step."
        )
    if step is not None and (why := integrity.damage(_path(path, step))):
        others = ", ".join(f"checkpoint_{s}" for s in there if s != step) or "none"
        raise DamagedError(
            f"{path}/checkpoint_{step} is damaged: {why}. Put it back from a copy, or name another (there: {others})."
        )
    return path, found


def drop_after(model_dir: str, step: int) -> list[int]:
    """Deletes the checkpoints of later steps, `done.json` and `best.json`, which the run writes anew. To be called by
    one process; returns the steps."""
    later = [s for s in _named(model_dir) if s > step]
    for s in later:
        _delete(_path(model_dir, s))
    for name in ("done.json", best.FILE):
        (epath.Path(model_dir) / name).unlink(missing_ok=True)
    return later


class Checkpointer:
    """Saves and restores the state of one run.

    Args:
        model_dir: folder of the run; made if needed.
        keep: newest checkpoints to keep, beside the one that was saved last: that has not proved itself yet, and
            `finish` counts it in. None keeps all.
        read_only: refuses to save, makes and deletes nothing.
        at: the step that a run goes on from; what is there of later steps is not counted, and saved over. Default all
            count.

    Attributes:
        best: step of a checkpoint that is kept beside the newest. To be set when it is on disk (`wait`); the former one
            is deleted with the next save.

    Raises:
        UserError: the bucket of the folder cannot be reached; or `keep` is below 1.
    """

    def __init__(self, model_dir: str, keep: int | None = 1, read_only: bool = False, at: int | None = None):
        import orbax.checkpoint as ocp

        if keep is not None and keep < 1:
            raise UserError(f"keep_checkpoints is {keep}; expected 1 or more, or None for all.")
        buckets.check(model_dir)
        self._ocp, self._keep, self._read_only = ocp, keep, read_only
        self._model_dir = str(epath.Path(model_dir)) if is_remote(model_dir) else str(epath.Path(model_dir).resolve())
        self.best: int | None = None
        self._saved: list[int] = []
        self._former = [s for s in ([] if read_only else steps(model_dir)) if at is None or s <= at]
        self._saving: tuple[epath.Path, dict[str, Any]] | None = None
        # Compression takes twice the time, and trained numbers get a twelfth smaller.
        settings: dict[str, Any] = {"restore_concurrent_gb": _READ_AHEAD_GB, "use_compression": False}
        handlers: dict[str, Any] = {
            name: ocp.PyTreeCheckpointHandler(**settings) for name in ("params", "optimizer", EMA)
        }
        with quiet():
            self._orbax = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(**handlers),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                # Of a bucket Orbax reads only what it marked. What was copied there from a disk may have no such mark.
                temporary_path_class=ocp.path.atomicity.AtomicRenameTemporaryPath if read_only else None,
            )
        if not read_only and jax.process_index() == 0:
            epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
            for path in epath.Path(model_dir).iterdir():  # of a process that was killed
                if _UNFINISHED.fullmatch(path.name):
                    _delete(path)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint of this run, or None."""
        return max([*self._former, *self._saved], default=None)

    def save(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Starts to save; training goes on meanwhile. A step that this object has saved already is left as it is.

        Args:
            state: saved as it is now; the next step may reuse its memory.
            run: JSON-serialisable.

        Raises:
            UserError: the state is not finite. Nothing is saved then, and nothing deleted.
        """
        step = int(state.step)
        if self._read_only:
            raise ValueError(f"{self._model_dir} was opened to be read")
        if step in self._saved:
            return
        integrity.check_finite(state, self._way_on())
        self.wait()
        path = _path(self._model_dir, step)
        self._saving = self._orbax.get_temporary_path(path).get(), run_record.make(step, run)
        items = {item: self._save_args(tree) for item, tree in _items(state).items()}
        with quiet():
            self._orbax.save(path, args=self._ocp.args.Composite(**items), force=True)
        self._saved.append(step)

    def _way_on(self) -> str:
        last = self.latest()
        good = "There is no checkpoint to go back to" if last is None else f"checkpoint_{last} is the last good one"
        return (
            f"{good}. Lower OptimizerConfig.learning_rate or set OptimizerConfig.clip_norm, and look at the data of "
            "the latest steps. The same command then goes on from there, and with --step=N from an older checkpoint."
        )

    def _seal(self) -> None:
        """Ends a checkpoint: Orbax has written all but its mark, and calls this in process 0, beside the training."""
        assert self._saving is not None
        folder, record = self._saving
        run_record.write(folder, record)
        checksums.write(folder)
        self._delete_old([s for s in [*self._former, *self._saved] if s != record["step"]], record["step"])

    def _delete_old(self, good: list[int], before: int) -> None:
        if self._keep is None:
            return
        kept = sorted(set(good))[-self._keep :]
        for step in _named(self._model_dir):
            if step < before and step not in kept and step != self.best:
                try:
                    _delete(_path(self._model_dir, step))
                except OSError as e:  # no reason to lose the new one
                    integrity.tell(f"{_path(self._model_dir, step)} could not be deleted ({e}).")

    def finish(self) -> None:
        """Waits, and deletes all but the newest `keep` checkpoints and the best: the run is done."""
        self.wait()
        if (last := self.latest()) is not None and jax.process_index() == 0:
            self._delete_old([*self._former, *self._saved], last)

    def run(self, step: int) -> dict[str, Any]:
        """Returns the JSON object of a checkpoint (`run_record`); `sources` is always in it.

        Raises:
            UserError: it is damaged, or another version of vadapter wrote it.
        """
        try:
            run = run_record.read(_path(self._model_dir, step))
        except ValueError as e:
            raise DamagedError(f"{self._model_dir}/checkpoint_{step} is damaged: {e}. {_INSTEAD}") from e
        if run.get("format") != FORMAT:
            raise UserError(
                f"{self._model_dir}/checkpoint_{step} has format {run.get('format')!r:.40}; this version of vadapter "
                f"reads format {FORMAT}. Use the version that wrote it."
            )
        return {"sources": [], **run}

    def restore(self, step: int, abstract: TrainState, shardings: TrainState) -> TrainState:
        """Reads a state, each array straight to its devices; the mesh may differ from the one that saved it.

        Args:
            step: which checkpoint.
            abstract: the shapes that the run has now.
            shardings: where to put the arrays.

        Raises:
            UserError: the checkpoint has other parameters or shapes, or cannot be read.
        """
        placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        wanted = _items(placed)
        if EMA in wanted:
            self._check_ema(step)
        for item, tree in wanted.items():
            _check(f"{self._model_dir}/checkpoint_{step}", item, trees.flatten(tree), self.shapes(step, item))
        restored = self._restore(step, wanted)
        leaves = trees.flatten(restored["optimizer"])
        opt_state = [leaves["state/" + name] for name in named_leaves(abstract.opt_state)]
        structure = jax.tree.structure(abstract.opt_state)
        opt_state = jax.tree.unflatten(structure, opt_state)
        return TrainState(leaves["step"], restored["params"], opt_state, restored[EMA] if EMA in wanted else None)

    def shapes(self, step: int, item: str = "params") -> dict[str, jax.ShapeDtypeStruct]:
        """Returns `{slash path: shape and dtype}` of what a checkpoint holds, without reading the arrays.

        Raises:
            UserError: it cannot be read.
        """
        with self._reading(step):
            tree = self._ocp.PyTreeCheckpointHandler().metadata(_path(self._model_dir, step) / item).tree
            return {p: jax.ShapeDtypeStruct(tuple(m.shape), m.dtype) for p, m in trees.flatten(tree).items()}

    def _check_ema(self, step: int) -> None:
        if not (_path(self._model_dir, step) / EMA).exists():
            raise UserError(
                f"{self._model_dir}/checkpoint_{step} has no moving average of its parameters (EMA). Leave the "
                "EMA out, or train with TrainConfig.ema_decay in another MODEL_DIR."
            )

    def read(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], *, ema: bool | None = None) -> dict[str, Any]:
        """Reads some of the parameters, and nothing else of the checkpoint.

        Args:
            step: which checkpoint.
            wanted: of each slash path its shape and the dtype to read it as. With a sharding the result is an array of
                which this process reads what its devices hold; without, a numpy array on the host.
            ema: whether to read their moving average instead; default as the run says (`TrainConfig.use_ema`).

        Returns:
            `{slash path: array}`.

        Raises:
            UserError: it cannot be read, or has no moving average.
        """
        ema = bool(self.run(step).get("ema")) if ema is None else ema
        if ema:
            self._check_ema(step)
        item = EMA if ema else "params"
        return trees.flatten(self._restore(step, {item: trees.unflatten(wanted)})[item])

    def _restore(self, step: int, wanted: Mapping[str, PyTree]) -> Any:
        args = {item: self._restore_args(tree) for item, tree in wanted.items()}
        with quiet(), self._reading(step):
            return self._orbax.restore(_path(self._model_dir, step), args=self._ocp.args.Composite(**args))

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """What Orbax and TensorStore say of files that are not as they wrote them, in checkpoints without checksums."""
        try:
            yield
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as e:
            if lost_processes.said(e) is not None:  # a restore waits for all processes
                raise
            said = (str(e).splitlines() or [type(e).__name__])[0]
            if isinstance(e, ConnectionError | TimeoutError) or any(word in str(e) for word in _PASSING):
                raise ConnectionError(f"{self._model_dir}/checkpoint_{step} cannot be read now ({said:.200})") from e
            raise DamagedError(f"{self._model_dir}/checkpoint_{step} cannot be read ({said:.200}). {_INSTEAD}") from e

    def _save_args(self, tree: PyTree) -> Any:
        small = self._ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
        return self._ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: small, tree))

    def _restore_args(self, tree: PyTree) -> Any:
        kinds = self._ocp.checkpoint_utils.construct_restore_args(tree)
        return self._ocp.args.PyTreeRestore(tree, restore_args=kinds, partial_restore=True)

    def wait(self) -> None:
        """Returns when everything is on disk. Raises what the file system said, such as that it is full."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Waits and gives up the threads. Raises as `wait`."""
        self.wait()
        self._orbax.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _items(state: TrainState) -> dict[str, PyTree]:
    items = {"params": state.params, "optimizer": _optimizer_tree(state)}
    return items if state.ema is None else {**items, EMA: state.ema}


def _optimizer_tree(state: TrainState) -> dict[str, Any]:
    # Plain nested dicts: readable without knowing the optimizer that wrote them.
    state_leaves = {"state/" + name: leaf for name, leaf in named_leaves(state.opt_state).items()}
    return trees.unflatten({"step": state.step, **state_leaves})


def _check(where: str, item: str, expected: Mapping[str, PyTree], found: Mapping[str, Any]) -> None:
    wrong = [p for p in sorted(expected.keys() | found.keys()) if _shape(expected, p) != _shape(found, p)]
    if wrong:
        lines = [f"{p}: expected {_shape(expected, p)}, found {_shape(found, p)}" for p in wrong[:5]]
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"The {item} of {where} are not those of this run. {'; '.join(lines)}{more}. Use the model, trainable "
            "patterns and optimizer that wrote the checkpoint, or another MODEL_DIR; to start a new run from these "
            "weights, give the folder as a Source."
        )


def _shape(leaves: Mapping[str, Any], path: str) -> str:
    return str(tuple(leaves[path].shape)) if path in leaves else "nothing"
