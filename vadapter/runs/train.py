"""Trains: the parts are made, the parameters are found, the loop runs."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vadapter.base import files, storage_errors, versions
from vadapter.base.errors import UserError
from vadapter.base.host_memory import keep_freed_memory
from vadapter.data import tasks
from vadapter.data.order.config import LoaderConfig
from vadapter.data.rows import formats
from vadapter.models.decoder import DecoderConfig
from vadapter.models.losses import ObjectiveConfig
from vadapter.models.stacks import layer_stacks
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning import MeshConfig
from vadapter.runs import account, bundle, description, folder, handoff, lock, resume, warm_start
from vadapter.runs.experiment import Evaluation, Experiment, Parts, data_info
from vadapter.runs.handoff import Handoff
from vadapter.runs.load import load
from vadapter.runs.model import TrainedModel
from vadapter.runs.weights import Weights, sources
from vadapter.training import best, checkpoints, initialize, loop
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.sources import Reference
from vadapter.training.storage import FROZEN_DTYPE


def run(experiment: Experiment, *, accepted: Callable[[str], None] | None = None) -> loop.TrainResult:
    """Trains an experiment. A run that was stopped goes on where it was.

    Writes into `model_dir` what `training.loop.train` writes, `model.json`, and `environment.json`: the versions and
    devices of the latest session. Nothing is written before everything is accepted. While it trains it holds the
    folder's lock (`vadapter.runs.lock`).

    Args:
        experiment: what to train.
        accepted: is called with `model_dir`, in the first process only, when everything is made and nothing was
            refused: the moment to keep one's own record of the run.

    Raises:
        UserError: something does not fit, another process trains in `model_dir`, or its disk took no more
            (`storage_errors.StorageError`).
    """
    folder.check(experiment.model_dir)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors.told_once())
        try:
            _lock(experiment.model_dir, stack)
            return _run(experiment, accepted)
        except Exception as error:
            if (reason := storage_errors.reason(error)) and not isinstance(error, UserError):
                raise _stopped_by(reason, experiment.model_dir) from error
            raise


def _run(experiment: Experiment, accepted: Callable[[str], None] | None) -> loop.TrainResult:
    parts = Parts(experiment)
    evaluators, loader = parts.evaluators(), parts.loader
    if experiment.train.best:  # a run of weeks must not find it out at its first evaluation
        best.evaluator_of(experiment.train.best, evaluators, experiment.train.eval_every)
    described, data = description.describe(experiment), data_info(experiment, parts.tiny)
    say = initialize.print_once
    finished = resume.check(
        experiment.model_dir, described, data, experiment.train, say, back_to=experiment.resume_step
    )
    if jax.process_index() == 0 and not finished:
        folder.check_room(experiment.model_dir, _checkpoint_bytes(parts))
    if not finished:
        left = experiment.train.steps - (checkpoints.newest(experiment.model_dir) or 0)
        account.tell(parts.program, _useful_flops(parts), left, say)
        for stack in layer_stacks(experiment.model).values():
            if isinstance(stack, DecoderConfig) and stack.is_fused:
                from vadapter.models import fused  # its kernels are of jax's experimental modules

                fused.check(stack.num_heads, stack.num_kv_heads, stack.head_dim)
    start = initialize.begin(
        parts.program,
        experiment.model_dir,
        lambda: fresh(experiment, parts),
        sources=experiment.sources,
        others=[_bundle(experiment.bundle, experiment.model_dir)] if experiment.bundle else [],
        data_info=data,
        step=experiment.resume_step,
    )
    # Of a finished run nothing is written, but what an older version did not write or a full disk has cut.
    whole = files.read_json(epath.Path(experiment.model_dir) / description.FILE) is not None
    if jax.process_index() == 0 and not (finished and whole):
        if accepted is not None:
            accepted(experiment.model_dir)
        description.save(experiment.model_dir, described)
        files.write_json(epath.Path(experiment.model_dir) / "environment.json", versions.machine())

    return loop.train(
        experiment.train,
        program=parts.program,
        start=start,
        batches=loader.batches,
        model_dir=experiment.model_dir,
        evaluators=evaluators,
        flops=parts.flops(),
    )


def fresh(experiment: Experiment, parts: Parts) -> tuple[Any, list[Reference]]:
    """Makes the parameters of a new run, as they are kept, and the record of where they are from."""
    start_by = None if experiment.bundle else experiment.handoff  # a bundle gives the adapter's values
    if start_by:  # what is wrong with it is told before weights are read
        trained = parts.program.storage.trained
        handoff.check(start_by, getattr(experiment.model, "adapter", None), experiment.data.mixture, trained)
    params, references = initialize.initial_params(
        parts.program,
        jax.random.key(experiment.seed),
        sources=experiment.sources,
        model_dir=experiment.model_dir,
    )
    if start_by:
        params = handoff.start(
            start_by,
            params,
            parts.program,
            experiment.data,
            parts.loader.batches,
            references=references,
            model_dir=experiment.model_dir,
        )
    if experiment.bundle:
        started_from = bundle.read(experiment.bundle)
        params, record = warm_start.warm_start(
            params, references, started_from, parts.program, experiment.model, experiment.model_dir
        )
        references.append(record)
    return params, references


def _lock(model_dir: str, stack: contextlib.ExitStack) -> None:
    """Takes the folder's lock in the first process and tries its file system; ends all where either is refused."""
    refused: Exception | None = None
    if jax.process_index() == 0:
        try:
            stack.enter_context(lock.held(model_dir, say=initialize.print_once))
            folder.check_store(model_dir)
        except Exception as error:  # told to the others first
            refused = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        told = bool(multihost_utils.broadcast_one_to_all(np.int32(refused is not None)))
        if told and refused is None:
            raise UserError(f"The first process of this run may not write into {model_dir}; its message says why.")
    if refused is not None:
        raise refused


def _useful_flops(parts: Parts) -> float | None:
    """Of a step whose rows are full; None where a part computes in float32, of which no card's speed is known."""
    if any(getattr(config, "dtype", "") != "bfloat16" for config in layer_stacks(parts.experiment.model).values()):
        return None
    # Nothing that counts reads media, which may be large: they stay shapes.
    like = jax.tree.map(lambda x: np.ones(x.shape, x.dtype) if len(x.shape) <= 2 else x, parts.program.example)
    return sum(parts.flops()(like).values())


def _checkpoint_bytes(parts: Parts) -> int:
    state = parts.program.abstract_state
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state) if hasattr(x, "dtype"))


def _stopped_by(reason: str, model_dir: str) -> storage_errors.StorageError:
    """What to say where the disk of a run took no more."""
    try:
        steps = checkpoints.steps(model_dir)
    except Exception:  # the disk is gone altogether
        steps = []
    last = f"Its last good checkpoint is that of step {steps[-1]}" if steps else "It has no checkpoint yet"
    return storage_errors.StorageError(
        f"The run {model_dir} had to end: {reason}. {last}. Make room or mend the disk, and give the same command "
        "again, which goes on from there; or start in a MODEL_DIR on another disk."
    )


def _bundle(path: str, model_dir: str) -> Reference | None:
    return warm_start.reference(bundle.read(path), model_dir) if epath.Path(path).exists() else None


def train(
    model: VLMConfig,
    data: str | os.PathLike[str],
    model_dir: str | os.PathLike[str],
    *,
    weights: Weights,
    vocabulary: str,
    stage1: str | os.PathLike[str] | None = None,
    handoff: Handoff | None = None,
    tiny_loss: float = 0.0,
    validation: str | os.PathLike[str] | None = None,
    trainable: Sequence[str] = ("adapter/.*",),
    steps: int = 1000,
    batch_size: int = 32,
    optimizer: OptimizerConfig | None = None,
    lengths: Mapping[str, int] | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    prompt_format: str = formats.PLAIN,
    resize: str | None = None,
    media_folders: str | Sequence[str] = (),
    frozen_dtype: str = FROZEN_DTYPE,
    mesh: MeshConfig | None = None,
    seed: int = 0,
) -> TrainedModel:
    """Trains on a JSONL file, without gin. Called again, it goes on where it was stopped.

    Args:
        model: encoder, adapter and decoder.
        data: a JSONL file (data/README.md has its form), or the name of a seqio task or mixture that was registered
            with `vadapter.data.tasks`.
        model_dir: folder of the run: checkpoints, `curve.jsonl`, TensorBoard files, `model.json`.
        weights: of a part, such as `encoder` or `decoder`, the folder that has it.
        vocabulary: the decoder's: a tokeniser's file or folder, or an imported language model's folder. A registered
            task has its own.
        stage1: MODEL_DIR of stage 1, for an adapter that goes on from it.
        handoff: how the adapter's first values fit the language models on both of its sides; its source is `stage1`
            where it names none.
        tiny_loss: factor of the captioning loss that the tiny LM in the adapter keeps from stage 1, by the tokeniser of
            `stage1` (`ObjectiveConfig.tiny_loss`); 0 is none.
        validation: another JSONL file; default 5% of the media of `data` are held out.
        trainable: regexes of whole paths of the parameters to train; all others are frozen.
        steps: updates in all.
        batch_size: rows of a step over all devices.
        optimizer: default AdamW at 5e-4, warm-up over a tenth of the steps, 1,000 at most, then linear decay.
        lengths: `inputs` and `targets`, tokens of text a row; default 64 each.
        evaluate_every: steps between two measurements of the validation loss; 0: at the end only.
        checkpoint_every: steps between two checkpoints; 0: at the end only.
        prompt_format: `plain`; `chat`, the turns of the vocabulary's family; or a name of `formats.FORMATS`.
        resize: how pictures become square, see `resizing.parse`; default the encoder's way.
        media_folders: folders that pictures and videos may lie in beside those of the JSONL files: for absolute paths
            and `..` in them.
        frozen_dtype: `bfloat16`, `float32` or `int8`; see `Storage`.
        mesh: how devices are laid out; default all on the data axis.
        seed: of random parameters and of the order of the data.

    Returns:
        The trained model, as `load(model_dir)` reads it.

    Raises:
        UserError: a file, folder or setting does not fit; the message says which and what to change.
    """
    started_from, mixture = sources(model, weights, stage1), os.fspath(data)
    if os.path.isfile(mixture) or mixture.endswith((".jsonl", ".json")):
        other = None if validation is None else os.fspath(validation)
        settings: dict[str, Any] = {"vocabulary": vocabulary, "prompt_format": prompt_format, "resize": resize}
        settings["media_folders"] = media_folders
        mixture = tasks.jsonl_task("own", mixture, other, **settings)
    loader = LoaderConfig(mixture, batch_size=batch_size, lengths=lengths or {"inputs": 64, "targets": 64}, seed=seed)
    started = handoff
    if started and stage1 and not started.source:
        started = dataclasses.replace(started, source=os.fspath(stage1))
    optimizer = optimizer or OptimizerConfig(warmup_steps=min(1000, steps // 10))
    experiment = Experiment(
        model=model,
        model_dir=os.fspath(model_dir),
        data=loader,
        train=loop.TrainConfig(
            steps=steps,
            trainable=tuple(trainable),
            frozen_dtype=frozen_dtype,
            optimizer=optimizer,
            eval_every=evaluate_every,
            checkpoint_every=checkpoint_every,
        ),
        sources=started_from,
        evaluations=(Evaluation(dataclasses.replace(loader, split="validation")),),
        mesh=mesh or MeshConfig(),
        seed=seed,
        handoff=started,
        objective=ObjectiveConfig(tiny_loss=tiny_loss),
        tiny_lm=None if stage1 is None or not tiny_loss else os.fspath(stage1),
    )
    if run(experiment).interrupted:
        raise KeyboardInterrupt
    return load(experiment.model_dir, partitioner=Parts(experiment).partitioner)
