"""Trains: the parts are made, the parameters are found, the loop runs."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vadapter.base import buckets, versions
from vadapter.base.host_memory import keep_freed_memory
from vadapter.data import tasks
from vadapter.data.order.config import LoaderConfig
from vadapter.data.rows import formats
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning import MeshConfig
from vadapter.runs import bundle, description, handoff, warm_start
from vadapter.runs.experiment import Evaluation, Experiment, Parts, data_info
from vadapter.runs.handoff import Handoff
from vadapter.runs.load import load
from vadapter.runs.model import TrainedModel
from vadapter.runs.weights import Weights, sources
from vadapter.training import checkpoints, initialize, loop
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.sources import Reference
from vadapter.training.storage import FROZEN_DTYPE


def run(experiment: Experiment, *, accepted: Callable[[str], None] | None = None) -> loop.TrainResult:
    """Trains an experiment. A run that was stopped goes on where it was.

    Writes into `model_dir` what `training.loop.train` writes, `model.json`, and `environment.json`: the versions and
    devices of the latest session.

    Args:
        experiment: what to train.
        accepted: is called with `model_dir`, in the first process only, when everything is made and nothing was
            refused: the moment to keep one's own record of the run.
    """
    buckets.check(experiment.model_dir)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    parts = Parts(experiment)
    evaluators, loader = parts.evaluators(), parts.loader

    def fresh() -> tuple[Any, list[Reference]]:
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
                loader.batches,
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

    described = description.describe(experiment)
    if checkpoints.steps(experiment.model_dir):
        description.check_same_pictures(experiment.model_dir, described)
    start = initialize.begin(
        parts.program,
        experiment.model_dir,
        fresh,
        sources=experiment.sources,
        others=[_bundle(experiment.bundle, experiment.model_dir)] if experiment.bundle else [],
        data_info=data_info(experiment),
        step=experiment.resume_step,
    )
    if jax.process_index() == 0:
        if accepted is not None:
            accepted(experiment.model_dir)
        description.save(experiment.model_dir, described)
        made_with = json.dumps(versions.machine(), indent=2)
        (epath.Path(experiment.model_dir) / "environment.json").write_text(made_with + "\n")
    return loop.train(
        experiment.train,
        program=parts.program,
        start=start,
        batches=loader.batches,
        model_dir=experiment.model_dir,
        evaluators=evaluators,
        flops=parts.flops(),
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
    )
    if run(experiment).interrupted:
        raise KeyboardInterrupt
    return load(experiment.model_dir, partitioner=Parts(experiment).partitioner)
