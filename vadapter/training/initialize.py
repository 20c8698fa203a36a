"""Parameters of a run: read from other runs, each to the devices that hold it, and at random what no source gives.

A run's checkpoint holds what the run trained. Everything else it took from `Source`s, and the checkpoint records them:
`restore` reads them again, refuses other weights than the run had, and lays the run's own parameters over them.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Sharding

from vadapter.base import terminal, trees
from vadapter.base.array_types import Array, PyTree
from vadapter.base.errors import UserError
from vadapter.base.paths import relative, resolve
from vadapter.partitioning import Partitioner, init_params
from vadapter.training import checkpoints
from vadapter.training.program import Program
from vadapter.training.sources import Offer, Reference, Source, check_fits, check_same, look
from vadapter.training.state import TrainState
from vadapter.training.storage import FROZEN_DTYPE, Storage


def print_once(line: str) -> None:
    """Prints a line in the first process only."""
    if jax.process_index() == 0:
        print(terminal.line(line), flush=True)


def initial_params(
    program: Program,
    rng: Array,
    *,
    sources: Sequence[Source] = (),
    model_dir: str,
    say: Callable[[str], None] = print_once,
) -> tuple[dict[str, Any], list[Reference]]:
    """Makes a run's parameters: from its sources, and at random what no source gives.

    Each process reads what its devices hold and nothing else. A later source wins over an earlier one.

    Args:
        program: says what the parameters are, and how each is kept.
        rng: key of `jax.random.key`.
        sources: other runs.
        model_dir: folder of this run.
        say: is given a line a source: what was taken, and what was left.

    Returns:
        Nested dict of all parameters on the device, as they are kept, and the references for the checkpoint.

    Raises:
        UserError: as `sources.look`; or a frozen parameter comes from no source.
    """
    shapes, storage = program.shapes, program.storage
    frozen = [path for path in shapes if path not in storage.trained]
    offers = [look(source, shapes) for source in sources]
    config = getattr(program.model, "config", None)
    for offer in offers:
        offer.check_table(getattr(getattr(config, "encoder", None), "position_grid", None))
    taken = {path for offer in offers for path in offer.taken}
    _check_covered(frozen, taken, [s.path for s in sources])
    references = [offer.reference(relative(offer.folder, model_dir), frozen) for offer in offers]
    params = _read(offers, taken, storage)
    for offer in offers:
        say(offer.summary())
    if rest := [path for path in shapes if path not in taken]:
        random = init_params(program.model, program.example, rng, program.partitioner, only=rest)
        params |= {path: storage.keep(path, x) for path, x in trees.flatten(random).items()}
    for path in [path for path in getattr(config, "starts", dict)() if path in rest]:
        params[path] = _start(program.model, path, trees.unflatten(params), storage.shardings[path])
    return trees.unflatten(params), references


def offers(shapes: Mapping[str, Any], sources: Sequence[Source]) -> list[Offer]:
    """Finds what sources give a model whose parameters have these shapes. Raises `UserError` as `sources.look`."""
    return [look(source, shapes) for source in sources]


def read(shapes: Mapping[str, Any], sources: Sequence[Source], storage: Storage, prefix: str) -> dict[str, Any]:
    """Reads the parameters of one part of a model, and nothing else.

    Args:
        shapes: `{slash path: shape struct}` of all of the model's parameters.
        sources: that give them; a later one wins.
        storage: how each is kept.
        prefix: of the paths that are read, such as "encoder/".

    Returns:
        Nested dict.

    Raises:
        UserError: as `sources.look`; or none gives one of them.
    """
    found, wanted = offers(shapes, sources), [path for path in shapes if path.startswith(prefix)]
    _check_covered(wanted, {path for offer in found for path in offer.taken}, [s.path for s in sources])
    return trees.unflatten(_read(found, wanted, storage))


def _start(model: nn.Module, path: str, params: PyTree, sharding: Sharding) -> Any:
    """The first value of a parameter that starts from others; see `AdapterConfig`."""
    run = jax.jit(lambda params: model.apply({"params": params}, path, method="start"), out_shardings=sharding)
    return run(params)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins: at step 0, or at its latest checkpoint.

    Attributes:
        state: of that step.
        frozen: the frozen parameters, as they are kept.
        references: what the run took from other runs, for its checkpoints.
        data_info: JSON-serialisable facts that fix the data (seed, mixture, ...), for its checkpoints.
        seconds: that former sessions of the run took.
        went_back_to: the steps that the run was told to go back to, for its checkpoints.
    """

    state: TrainState
    frozen: dict[str, Any]
    references: tuple[Reference, ...] = ()
    data_info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    went_back_to: tuple[int, ...] = ()


def begin(
    program: Program,
    model_dir: str,
    fresh: Callable[[], tuple[trees.Tree, Sequence[Reference]]],
    *,
    sources: Sequence[Source] = (),
    others: Sequence[Reference | None] = (),
    data_info: Mapping[str, Any] | None = None,
    step: int | None = None,
    say: Callable[[str], None] = print_once,
) -> Start:
    """Takes a run's newest whole checkpoint, or starts it.

    A run that goes on needs its sources of frozen parameters, which are read again and checked by hash. Those of
    initial values are not needed: their hash is compared where they are still there.

    Args:
        program: of the step.
        model_dir: folder of the run.
        fresh: makes all parameters of a new run, and what they are from (`initial_params`).
        sources: that `fresh` reads.
        others: what else `fresh` takes initial values from; None for what is not there any more.
        data_info: JSON-serialisable facts that fix the data.
        step: which checkpoint to go back to, instead of the newest; all later ones are deleted. The same call goes on
            from the checkpoints that the run has made since, so that a run that is stopped can be started again.
        say: is given a line on what was found.

    Raises:
        UserError: the checkpoint is another model's; the data are others; a source is missing or has changed; the
            checkpoint of `step` is missing or damaged; or all are.
    """
    chosen = choose(model_dir, step, say)
    if chosen is None:
        params, references = fresh()
        return Start(*program.start(params), tuple(references), dict(data_info or {}))
    what = f"The run {model_dir}"
    step, went_back_to, going_back = chosen
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        run = checkpointer.run(step)
        former, data = run.get("data", {}), dict(data_info or {})
        both = former.keys() & data.keys()  # an older version recorded fewer
        if any(former[key] != data[key] for key in both):
            raise UserError(
                f"{what} was trained on the data {former}; it is now given {data}. Give it the former data settings, "
                "or start a new run in another MODEL_DIR."
            )
        state = program.restore(checkpointer, step)
    references = [Reference.from_json(r) for r in run["sources"]]
    offers = _same_sources(program, references, sources, others, what, say)
    frozen = [path for path in program.shapes if path not in program.storage.trained]
    taken = {path for offer in offers for path in offer.taken}
    if any(path not in taken for path in frozen):  # they were given as arrays, and are given again
        kept = program.storage.keep_all(program.storage.split(fresh()[0])[1])
    else:
        kept = trees.unflatten(_read(offers, frozen, program.storage))
    if going_back and jax.process_index() == 0:
        dropped = checkpoints.drop_after(model_dir, step)
        say(f"Going back to step {step}: deleted {', '.join(f'checkpoint_{s}' for s in dropped)}.")
    say(f"Resuming {model_dir} at step {step}.")
    return Start(state, kept, tuple(references), {**former, **data}, run.get("seconds", 0.0), went_back_to)


def choose(
    model_dir: str, asked: int | None, say: Callable[[str], None] = print_once
) -> tuple[int, tuple[int, ...], bool] | None:
    """Chooses the checkpoint that a run goes on from. All processes of a run call it together.

    Args:
        model_dir: folder of the run.
        asked: as `step` of `begin`.
        say: is given a line where an earlier call went back to that step.

    Returns:
        The step; the steps that the run was told to go back to so far; and whether it goes back now. None if there is
        no checkpoint and none was asked for.

    Raises:
        UserError: as `checkpoints.locate`.
    """
    newest = checkpoints.newest(model_dir)
    if newest is None:
        return None if asked is None else (checkpoints.locate(model_dir, asked)[1], (), False)  # says what is there
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        before = tuple(checkpointer.run(newest).get("went_back_to", ()))
        if asked is None:
            return newest, before, False
        if asked == newest:
            return newest, (*before, asked), False
        if asked < newest and asked in before:
            say(
                f"{model_dir} went back to step {asked} before: it goes on from checkpoint_{newest}, made since. To go "
                "back there once more, delete the later checkpoints."
            )
            return newest, before, False
        step = checkpoints.locate(model_dir, asked)[1]
        return step, (*checkpointer.run(step).get("went_back_to", ()), asked), True


def _same_sources(
    program: Program,
    recorded: Sequence[Reference],
    sources: Sequence[Source],
    others: Sequence[Reference | None],
    what: str,
    say: Callable[[str], None],
) -> list[Offer]:
    """Looks at the sources of a run that goes on; returns those of frozen parameters."""
    if len(recorded) != len(sources) + len(others):
        raise UserError(
            f"{what} was started from {len(recorded)} sources; it is now given {len(sources) + len(others)}. Give it "
            "the former sources, or start a new run in another MODEL_DIR."
        )
    frozen = [path for path in program.shapes if path not in program.storage.trained]
    offers = []
    for reference, source in zip(recorded, sources, strict=False):
        if not reference.frozen and not epath.Path(source.path).exists():
            say(f"{source.path} is not there any more. It gave initial values only, which are not needed to go on.")
            continue
        offer = look(source, program.shapes)
        check_same(reference, offer.reference(offer.folder, frozen), what)
        if reference.frozen:
            offers.append(offer)
    for reference, now in zip(recorded[len(sources) :], others, strict=True):
        if now is not None:
            check_same(reference, now, what)
    return offers


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run's model as it was at a step.

    Attributes:
        params: nested dict of all parameters on the device, dtypes as in training.
        step: of the checkpoint.
        run: the checkpoint's JSON object.
    """

    params: dict[str, Any]
    step: int
    run: dict[str, Any]


def restore(
    model_dir: str,
    boxed: PyTree,
    partitioner: Partitioner,
    step: int | str | None = None,
    references: Sequence[Reference] | None = None,
    ema: bool | None = None,
) -> Restored:
    """Reads a trained model: the run's sources again, checked by hash, under the parameters that the run trained.

    Args:
        model_dir: a MODEL_DIR, or one of its `checkpoint_<step>` folders.
        boxed: the model's abstract parameters (`partitioning.abstract_params`).
        partitioner: places the parameters; need not be that of the training.
        step: which checkpoint, or `best`; default the latest.
        references: the run's sources, each with the folder where it is now; default as the run recorded them.
        ema: whether to take the moving average of what it trained; default as the run says.

    Raises:
        UserError: a checkpoint is missing or has no moving average, a source has other weights than the run had, or
            shapes differ.
    """
    model_dir, step = checkpoints.locate(model_dir, step)
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        run, stored = checkpointer.run(step), checkpointer.shapes(step)
        check_fits(stored, trees.flatten(nn.unbox(boxed)), f"{model_dir}/checkpoint_{step}")
        storage = Storage.of(boxed, partitioner, stored.keys(), run.get("frozen_dtype", FROZEN_DTYPE))
        own = checkpointer.read(step, {path: storage.read_as(path, x) for path, x in stored.items()}, ema=ema)
    if references is None:
        recorded = [Reference.from_json(r) for r in run["sources"]]
        references = [dataclasses.replace(r, path=resolve(r.path, model_dir)) for r in recorded]
    return Restored(assemble(own, references, boxed, storage, f"The run {model_dir}"), step, run)


def assemble(
    own: Mapping[str, Any], references: Sequence[Reference], boxed: PyTree, storage: Storage, what: str
) -> dict[str, Any]:
    """Lays a model's own parameters over what it took from other runs, which is read again and checked by hash.

    Args:
        own: `{slash path: array}` of what was trained, or is kept with it.
        references: what was taken, each with the folder where it is now; those of initial values are not needed.
        boxed: the model's abstract parameters (`partitioning.abstract_params`).
        storage: how each parameter is kept.
        what: whose parameters these are, for errors, such as "The run runs/queries".

    Returns:
        Nested dict of all parameters on the device, as they are kept.

    Raises:
        UserError: `own` does not fit the model, or a source is missing or has other weights than the run had; or a
            parameter is neither in `own` nor in a reference.
    """
    abstract = trees.flatten(nn.unbox(boxed))
    check_fits(own, abstract, what)
    others = [path for path in abstract if path not in own]
    offers = []
    for reference in references:
        if reference.frozen:
            offer = look(Source(reference.path, reference.rules, reference.step), abstract)
            check_same(reference, offer.reference(offer.folder, others), what)
            offers.append(offer)
    _check_covered(others, {p for offer in offers for p in offer.taken}, [r.path for r in references])
    params = _read(offers, others, storage)
    return trees.unflatten({**params, **{path: storage.keep(path, x) for path, x in own.items()}})


def _read(offers: Sequence[Offer], wanted: Collection[str], storage: Storage) -> dict[str, Any]:
    """Reads parameters, each from the last offer that has it."""
    giver = {path: offer for offer in offers for path in offer.taken if path in set(wanted)}
    params: dict[str, Any] = {}
    for offer in offers:
        if mine := [path for path in giver if giver[path] is offer]:
            params |= _read_offer(offer, mine, storage)
    return params


def _read_offer(offer: Offer, paths: Sequence[str], storage: Storage) -> dict[str, Any]:
    params: dict[str, Any] = {}
    with checkpoints.Checkpointer(offer.folder, read_only=True) as checkpointer:

        def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
            found = checkpointer.read(offer.step, {offer.taken[path]: x for path, x in wanted.items()})
            return {path: found[offer.taken[path]] for path in wanted}

        together = {}
        for path in paths:
            stored = offer.stored[offer.taken[path]]
            if how := offer.resampled.get(path):
                from vadapter.models.position_embeddings import resample

                table = np.asarray(read({path: stored})[path], np.float32)
                params[path] = storage.keep(path, resample(table, how.tokens, how.extra))
            elif storage.quantizes(path):
                # One by one, so that never more than one array lies on the devices unquantised.
                made = storage.keep(path, read({path: storage.read_as(path, stored)})[path])
                params[path] = jax.block_until_ready(made)
            else:
                together[path] = storage.read_as(path, stored)
        if together:
            params |= read(together)
    return params


def _check_covered(frozen: Collection[str], taken: Collection[str], sources: Sequence[str]) -> None:
    if missing := [p for p in frozen if p not in taken]:
        nearest = ", ".join(trees.nearest(missing[0], taken)) or "(none)"
        raise UserError(
            f"{len(missing)} frozen parameters come from no source, the first is {missing[0]}; frozen parameters are "
            f"not saved, so random ones would be lost. The sources {', '.join(sources) or '(none)'} give, nearest to "
            f"it: {nearest}. Add a source or a rule for it, or make it trainable."
        )
