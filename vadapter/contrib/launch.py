"""What both bridges share: an experiment whose loop is another package's, and the way back to a run of vadapter."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vadapter.base import files, json_text, quantization, trees
from vadapter.base.errors import UserError
from vadapter.base.paths import relative, resolve
from vadapter.models.vlm import VLMConfig
from vadapter.recipes import experiments, gin_front
from vadapter.runs import description, folder, lock, train
from vadapter.runs.description import Description
from vadapter.runs.experiment import Experiment, Parts
from vadapter.runs.load import load
from vadapter.training import checkpoints
from vadapter.training.checkpoints import Checkpointer
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.program import Program
from vadapter.training.sources import Reference, check_fits

SOURCES = "sources.json"


def experiment_of(text: str, model_dir: str | None = None) -> Experiment:
    """Makes the experiment that a text describes, where a launcher has no gin of its own.

    Args:
        text: settings with `;` between them, each as an option of `vadapter train` without its dashes:
            `gin_file=experiments/scenes_stage1.gin; gin.DATA_DIR='scenes'`.
        model_dir: of the experiment, where the text does not say it.

    Raises:
        UserError: as `vadapter train` of its options; or the text has something else.
    """
    given: dict[str, list[str]] = {"gin_file": [], "gin_search_paths": []}
    bindings = []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, _, value = part.partition("=")
        if name.startswith("gin."):
            bindings.append(part.removeprefix("gin."))
        elif name in given and value:
            given[name].append(value)
        else:
            raise UserError(
                f"Expected settings such as gin_file=experiments/scenes_stage1.gin; gin.DATA_DIR='scenes'. Found "
                f"{part!r}. Correct it."
            )
    experiments.register()
    default = [] if model_dir is None else [f"MODEL_DIR = {model_dir!r}"]
    gin_front.parse_gin(given["gin_file"], [*default, *bindings], given["gin_search_paths"])
    return experiments.made()


def check(experiment: Experiment, launcher: str) -> VLMConfig:
    """Refuses what only vadapter's own loop does, and returns the model's configuration.

    Args:
        experiment: of the launch.
        launcher: name of the package, for messages.

    Raises:
        UserError: the model is no VLM, draws noise that depends on the step, or is trained from int8 weights, a
            feature cache or with the tiny LM's own loss; gradients are accumulated; or there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"{launcher} runs in {jax.process_count()} processes; the bridge is for one, with any number of devices. "
            "Start one process, or use vadapter train."
        )
    model, config = experiment.model, experiment.train
    if not isinstance(model, VLMConfig):
        raise UserError(
            f"{launcher} was given a {type(model).__name__}; the bridge trains a VLMConfig. Use vadapter train."
        )
    if model.quantization is not None:
        raise UserError(
            f"The model quantises its soft tokens, with noise that depends on the step, which {launcher} does not tell "
            "a model. Leave VLMConfig.quantization at None, or train it with vadapter train."
        )
    if model.make().has_dropout:
        raise UserError(
            f"LoRA drops out, by a number that each step draws, which {launcher} does not tell a model. Set "
            "LoraConfig.dropout to 0, or train it with vadapter train."
        )
    if experiment.feature_cache is not None:
        raise UserError(
            f"Experiment.feature_cache is set, and {launcher} gives a model pixels. Leave it out, or train with "
            "vadapter train."
        )
    if experiment.objective.tiny_loss:
        raise UserError(
            f"ObjectiveConfig.tiny_loss is set, and {launcher} gives a model no text for its tiny LM. Set it to 0, or "
            "train with vadapter train."
        )
    if config.frozen_dtype == "int8":
        raise UserError(
            f"frozen_dtype is 'int8', and {launcher} keeps every parameter in f32. Set TrainConfig.frozen_dtype to "
            "'bfloat16' or 'float32'."
        )
    if config.optimizer.accumulate != 1:
        raise UserError(
            f"OptimizerConfig.accumulate is {config.optimizer.accumulate}; under {launcher} a batch is computed at "
            "once. Set it to 1."
        )
    return model


def begin(parts: Parts) -> dict[str, Any]:
    """Makes the first parameters of an experiment and writes what `to_run` will need into its `model_dir`.

    Args:
        parts: of the experiment.

    Returns:
        `{slash path: f32 array}` of all parameters. Frozen ones have the values that `vadapter train` would keep:
        rounded to bf16 where it keeps them so.

    Raises:
        UserError: as `vadapter train` before its first step.
    """
    experiment = parts.experiment
    folder.check(experiment.model_dir)
    if checkpoints.newest(experiment.model_dir) is not None:
        raise UserError(
            f"{experiment.model_dir} has checkpoints of vadapter train, which no other package goes on from. Give "
            "another MODEL_DIR; to start from them, give the folder as a Source."
        )
    described = description.describe(experiment)
    params, references = train.fresh(experiment, parts)
    if jax.process_index() == 0:
        description.save(experiment.model_dir, described)
        records = [reference.to_json() for reference in references]
        files.write_json(epath.Path(experiment.model_dir) / SOURCES, {"sources": records})
    return {path: _wide(x) for path, x in trees.flatten(params).items()}


def _wide(x: Any) -> Any:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def to_run(model_dir: str, params: dict[str, Any], step: int, out: str) -> None:
    """Writes parameters that another package has trained as a run, which all commands of vadapter read.

    Args:
        model_dir: folder of the launch, where `begin` wrote.
        params: `{slash path: array}` of all parameters.
        step: updates made so far.
        out: MODEL_DIR of the run; it is made.

    Raises:
        UserError: `model_dir` is of no such launch; parameters are missing; frozen ones have changed, so that the run
            could not refer to where they are from; or `out` is not empty.
    """
    described, references = _described(model_dir, out)
    _write_run(described.moved(model_dir, out), references, params, step, out)


def to_run_like(like: str, params: dict[str, Any], step: int | None, out: str) -> None:
    """Writes parameters of a model that is known from elsewhere as a run that has all of them itself.

    Args:
        like: a run or a bundle of the same model.
        params: `{slash path: array}` of all parameters.
        step: updates made so far; None is as many as `like` has.
        out: MODEL_DIR of the run; it is made.

    Raises:
        UserError: as `load` of `like`; parameters are missing, too many or of another shape; or `out` is not empty.
    """
    model = load(like)
    shapes = trees.flatten(model.params)
    if any(quantization.is_quantized(x) for x in shapes.values()):
        raise UserError(
            f"{like} was trained between int8 weights, which neither package has. Give another run or bundle."
        )
    odd = sorted(shapes.keys() ^ params.keys())
    if odd:
        where = "only there" if odd[0] in shapes else "not there"
        raise UserError(
            f"Expected the {len(shapes)} parameters of {like}, and found {len(params)}; {odd[0]} is {where}. Give a "
            "run or a bundle of the very model that was saved."
        )
    check_fits(params, shapes, like)
    described = model.description.moved(like, out)
    described = dataclasses.replace(described, training={**described.training, "trainable": [".*"]})
    _write_run(described, [], params, model.step if step is None else step, out)


def _write_run(
    described: Description, references: list[Reference], params: dict[str, Any], step: int, out: str
) -> None:
    _check_free(out)
    trainable = tuple(described.training["trainable"])
    settings = {"trainable": trainable, "frozen_dtype": described.frozen_dtype}
    # The state of the package's own optimizer stays behind: moments of this one are zeros.
    program = Program(described.model.make(), optimizer=OptimizerConfig(warmup_steps=0), **settings)
    state, frozen = program.start(trees.unflatten({path: np.asarray(x) for path, x in params.items()}))
    record = {
        "data": {},
        "sources": [reference.to_json() for reference in references],
        **settings,
        "trainable": list(trainable),
    }
    with lock.held(out):
        with Checkpointer(out) as checkpointer:
            at = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
            checkpointer.save(dataclasses.replace(state, step=at), record)
            checkpointer.finish()
        description.save(out, described)
    _check_frozen(out, trees.flatten(frozen))


def _described(model_dir: str, out: str) -> tuple[Description, list[Reference]]:
    file = epath.Path(model_dir) / SOURCES
    if not file.exists():
        raise UserError(
            f"{model_dir} has no {SOURCES}, which a launch with the bridge writes when it begins. Give the folder that "
            "was trained in, not one of its checkpoints' copies."
        )
    try:
        references = [Reference.from_json(record) for record in json_text.read(str(file))["sources"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not as the bridge writes it ({error}). Use the file as it was written.") from error
    moved = [relative(resolve(reference.path, model_dir), out) for reference in references]
    return description.load(model_dir), [
        Reference.from_json({**reference.to_json(), "path": path})
        for reference, path in zip(references, moved, strict=True)
    ]


def _check_free(out: str) -> None:
    folder.check(out, "The run's folder")
    if os.path.isdir(out) and os.listdir(out):
        raise UserError(f"{out} is there already and is not empty. Give a folder that is not there yet.")


def _check_frozen(out: str, frozen: dict[str, Any]) -> None:
    """Reads the run as commands do, and compares what it takes from elsewhere with what was trained between."""
    read = trees.flatten(load(out).params)
    changed = [path for path, x in frozen.items() if not np.array_equal(np.asarray(x), np.asarray(read[path]))]
    if changed:
        epath.Path(out).rmtree()
        raise UserError(
            f"{len(changed)} frozen parameters are not as they were when the training began, first {changed[0]}. "
            "A run refers to the weights that its frozen parameters are from. Freeze them, or make them trainable."
        )
