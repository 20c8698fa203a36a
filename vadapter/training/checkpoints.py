"""Checkpoints of a run: `MODEL_DIR/checkpoint_<step>/{params,optimizer,run}`.

`params` is the trainable tree, `optimizer` the optimizer state and step, `run` a JSON object: where in the data the run
is, and which frozen weights it used, by reference. Frozen weights themselves are never in it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from vadapter.base import buckets, trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.base.quiet import quiet
from vadapter.training.freezing import named_leaves
from vadapter.training.state import TrainState

FORMAT = 1
# A device that needs a part of an array reads whole chunks of the file.
_CHUNK_BYTES = 1 << 26
# What a process holds on the host while it reads: no more than this, however large its devices' parts are.
_READ_AHEAD_GB = 16
_MARK = "commit_success.txt"
_DIRECTORY = re.compile(r"checkpoint_(\d+)")


def steps(model_dir: str) -> list[int]:
    """Returns the steps of the finished checkpoints in a folder, ascending; empty if there is no such folder.

    Raises:
        UserError: the folder is in a bucket that cannot be reached.
    """
    buckets.check(model_dir)
    folder = epath.Path(model_dir)
    found = [_DIRECTORY.fullmatch(p.name) for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(m.group(1)) for m in found if m and _is_finished(folder / m.group(0)))


def _is_finished(checkpoint: epath.Path) -> bool:
    """Whether Orbax has noted when everything was written.

    On a disk an unfinished checkpoint has another name. In a bucket, where folders cannot be renamed, it has not.
    """
    try:
        record = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    except (FileNotFoundError, ValueError):  # absent, or just being written
        return False
    return record.get("commit_timestamp_nsecs") is not None


def split(path: str) -> tuple[str, int | None]:
    """Returns the MODEL_DIR of a path, and the step that it names: None where it is no `checkpoint_<step>` folder."""
    path = path.rstrip("/")
    if match := _DIRECTORY.fullmatch(path.rsplit("/", 1)[-1]):
        return path[: -len(match.group(0))].rstrip("/") or ".", int(match.group(1))
    return path, None


def locate(path: str, step: int | None = None) -> tuple[str, int]:
    """Finds a checkpoint.

    Args:
        path: a MODEL_DIR, or one of its `checkpoint_<step>` folders.
        step: which one; default the latest of a MODEL_DIR.

    Returns:
        (MODEL_DIR, step).

    Raises:
        UserError: there is none, or as `steps`.
    """
    path, named = split(path)
    step = named if step is None else step
    found = steps(path)
    if not found or (step is not None and step not in found):
        wanted = "A checkpoint" if step is None else f"checkpoint_{step}"
        nothing = "no checkpoint" if epath.Path(path).exists() else "no such folder"
        there = ", ".join(f"checkpoint_{s}" for s in found) or nothing
        raise UserError(
            f"{wanted} was expected in {path}; found {there}. Train that run first, or change the path or the step."
        )
    return path, found[-1] if step is None else step


class Checkpointer:
    """Saves and restores the state of one run.

    Args:
        model_dir: folder of the run; made if needed.
        keep: newest checkpoints to keep; None keeps all.
        read_only: refuses to save, makes and deletes nothing.

    Raises:
        UserError: the bucket of the folder cannot be reached, or a checkpoint was copied there and Orbax, which would
            write more of them, does not take it for a finished one.
    """

    def __init__(self, model_dir: str, keep: int | None = 1, read_only: bool = False):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        finished = steps(model_dir)
        self._model_dir = str(epath.Path(model_dir)) if is_remote(model_dir) else str(epath.Path(model_dir).resolve())
        options = ocp.CheckpointManagerOptions(
            step_prefix="checkpoint",
            max_to_keep=None if read_only else keep,
            save_interval_steps=0 if read_only else 1,
            read_only=read_only,
            create=not read_only,
            # Of a bucket Orbax takes only what it marked. What was copied there from a disk may have no such mark.
            temporary_path_class=ocp.path.atomicity.AtomicRenameTemporaryPath if read_only else None,
        )
        handlers: dict[str, Any] = {
            name: ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_READ_AHEAD_GB) for name in ("params", "optimizer")
        }
        handlers["run"] = ocp.JsonCheckpointHandler()
        with quiet():
            self._manager = ocp.CheckpointManager(self._model_dir, options=options, item_handlers=handlers)
        unseen = set() if read_only else set(finished).difference(self._manager.all_steps())
        if unseen:
            raise UserError(
                f"{self._model_dir}/checkpoint_{max(unseen)} has no {_MARK}, the mark of a finished checkpoint in a "
                f"bucket: it was copied there from a disk. If it was copied whole, put an empty file {_MARK} into it; "
                "else give another MODEL_DIR."
            )

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, run: Mapping[str, Any]) -> None:
        """Starts to save; training goes on meanwhile. A step that is there already is left as it is.

        Args:
            state: saved as it is now; the next step may reuse its memory.
            run: JSON-serialisable.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = self._ocp.args.Composite(
            params=self._save_args(state.params),
            optimizer=self._save_args(_optimizer_tree(state)),
            run=self._ocp.args.JsonSave({"format": FORMAT, "step": step, **run}),
        )
        self._manager.save(step, args=args, force=True)

    def run(self, step: int) -> dict[str, Any]:
        """Returns the JSON object of a checkpoint.

        Raises:
            UserError: another version of vadapter wrote it.
        """
        run = self._manager.restore(step, args=self._ocp.args.Composite(run=self._ocp.args.JsonRestore()))["run"]
        if run.get("format") != FORMAT:
            raise UserError(
                f"{self._model_dir}/checkpoint_{step} has format {run.get('format')}; this version of vadapter reads "
                f"format {FORMAT}. Use the version that wrote it."
            )
        return run

    def restore(self, step: int, abstract: TrainState, shardings: TrainState) -> TrainState:
        """Reads a state, each array straight to its devices; the mesh may differ from the one that saved it.

        Args:
            step: which checkpoint.
            abstract: the shapes that the run has now.
            shardings: where to put the arrays.

        Raises:
            UserError: the checkpoint has other parameters or shapes.
        """
        placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        wanted = {"params": placed.params, "optimizer": _optimizer_tree(placed)}
        for item, tree in wanted.items():
            _check(f"{self._model_dir}/checkpoint_{step}", item, trees.flatten(tree), self.shapes(step, item))
        args = {item: self._restore_args(tree) for item, tree in wanted.items()}
        restored = self._manager.restore(step, args=self._ocp.args.Composite(**args))
        leaves = trees.flatten(restored["optimizer"])
        opt_state = [leaves["state/" + name] for name in named_leaves(abstract.opt_state)]
        structure = jax.tree.structure(abstract.opt_state)
        return TrainState(leaves["step"], restored["params"], jax.tree.unflatten(structure, opt_state))

    def shapes(self, step: int, item: str = "params") -> dict[str, jax.ShapeDtypeStruct]:
        """Returns `{slash path: shape and dtype}` of what a checkpoint holds, without reading the arrays."""
        tree = self._manager.item_metadata(step)[item].tree
        return {p: jax.ShapeDtypeStruct(tuple(m.shape), m.dtype) for p, m in trees.flatten(tree).items()}

    def read(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Reads some of the parameters, and nothing else of the checkpoint.

        Args:
            step: which checkpoint.
            wanted: of each slash path its shape and the dtype to read it as. With a sharding the result is an array of
                which this process reads what its devices hold; without, a numpy array on the host.

        Returns:
            `{slash path: array}`.
        """
        args = self._ocp.args.Composite(params=self._restore_args(trees.unflatten(wanted)))
        return trees.flatten(self._manager.restore(step, args=args)["params"])

    def _save_args(self, tree: PyTree) -> Any:
        small = self._ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
        return self._ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: small, tree))

    def _restore_args(self, tree: PyTree) -> Any:
        kinds = self._ocp.checkpoint_utils.construct_restore_args(tree)
        return self._ocp.args.PyTreeRestore(tree, restore_args=kinds, partial_restore=True)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and gives up the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
