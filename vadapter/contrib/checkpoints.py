"""Checkpoints of t5x and big_vision, both ways. Needs neither package.

    python -m vadapter.contrib to_run runs/t5x/checkpoint_20 runs/stage1    # which `vadapter infer` reads
    python -m vadapter.contrib to_run stage1.npz runs/again --like=runs/stage1
    python -m vadapter.contrib to_t5x runs/stage1 exported
    python -m vadapter.contrib to_big_vision runs/stage1 stage1.npz

What is exported and read again has the same bits.
"""

import os
import re
from typing import Any

import numpy as np
from etils import epath

from vadapter.base import quantization, trees
from vadapter.base.errors import UserError
from vadapter.contrib import launch
from vadapter.models.vit import BIASES, ViTConfig
from vadapter.runs import folder
from vadapter.runs.load import load
from vadapter.runs.model import TrainedModel
from vadapter.weights import files_orbax
from vadapter.weights.checkpoint import T5X, open_checkpoint
from vadapter.weights.tensors import Tensors

_T5X = re.compile(r"checkpoint_(\d+)")
_BIG_VISION = re.compile(r"(.*)-(\d{9})(-tmp)?")
_PARAMS = "params~"
# What big_vision's ViT computes; a configuration with other values has no place in its checkpoints.
_PLAIN_VIT = {
    "activation": "gelu_tanh",
    "gated": False,
    "biases": BIASES,
    "norm": "layer",
    "norm_eps": 1e-6,
    "positions": "learned",
    "num_registers": 0,
    "layer_scale": False,
    "patch_norm": False,
    "pre_norm": False,
    "final_norm": True,
    "patch_bias": True,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "lora": None,
}


def to_run(checkpoint: str, out: str, like: str | None = None) -> None:
    """Writes a checkpoint that t5x or big_vision trained as a run, for `vadapter infer` and other commands.

    Args:
        checkpoint: `checkpoint_<step>` of t5x, `checkpoint.bv-<step>` of big_vision, or an .npz file of a whole model.
        out: MODEL_DIR of the run; it is made.
        like: a run or a bundle of the same model, for a checkpoint that is not where a launch of the bridges wrote it.
            The run then has all parameters itself. Without it the checkpoint's folder must be the MODEL_DIR of the
            experiment, and the run refers to the weights that frozen parameters are from.

    Raises:
        UserError: it is no such checkpoint, or as `launch.to_run` and `launch.to_run_like`.
    """
    params, step = _opened(checkpoint.rstrip("/"))
    if like is not None:
        launch.to_run_like(like, params, step, out)
    elif step is None:
        raise UserError(
            f"{checkpoint} does not say what model it is of. Give a run or a bundle of the same model with --like."
        )
    else:
        launch.to_run(os.path.dirname(os.path.abspath(checkpoint)), params, step, out)


def _opened(checkpoint: str) -> tuple[dict[str, np.ndarray], int | None]:
    """The parameters of a checkpoint and its step, where it has one."""
    name = os.path.basename(os.path.abspath(checkpoint))
    if name.endswith(".npz"):
        return read_all(open_checkpoint(checkpoint).tensors), None
    if match := _T5X.fullmatch(name):
        found = open_checkpoint(checkpoint)
        if found.kind != T5X:
            raise UserError(f"{checkpoint} is a checkpoint of the kind {found.kind}; expected one of t5x.")
        return read_all(found.tensors), int(match.group(1))
    if match := _BIG_VISION.fullmatch(name):
        return read_all(open_big_vision(checkpoint)), int(match.group(2))
    raise UserError(
        f"{checkpoint} is no checkpoint that is known. Expected the folder checkpoint_<step> of t5x, "
        "checkpoint.bv-<step, nine digits> of big_vision, or an .npz file."
    )


def read_all(tensors: Tensors) -> dict[str, np.ndarray]:
    """Reads all tensors of an open checkpoint."""
    return {name: tensors.read(name) for name in tensors.infos}


def open_big_vision(path: str) -> files_orbax.StoredArrays:
    """Opens the parameters of a `checkpoint.bv-<step>` folder of big_vision.

    Raises:
        UserError: it is none, or an array is missing or corrupt.
    """
    names = sorted(os.listdir(path)) if os.path.isdir(path) else []
    found = {name[len(_PARAMS) :].replace("~", "/"): name for name in names if name.startswith(_PARAMS)}
    if not found:
        raise UserError(f"{path} has no parameters of big_vision: expected folders that begin with {_PARAMS}.")
    base = os.path.abspath(path)
    specs = {k: files_orbax.spec({"driver": "file", "path": f"{base}/{name}/"}) for k, name in found.items()}
    return files_orbax.StoredArrays(path, specs)


def to_t5x(path: str, out: str) -> str:
    """Writes the parameters of a run or a bundle as a checkpoint of t5x, in its default layout.

    It has no state of an optimizer: `t5x.infer` and `t5x.eval` read it, and a training of t5x does with
    `RestoreCheckpointConfig.fallback_to_scratch`.

    Args:
        path: a run or a bundle.
        out: folder to write `checkpoint_<step>` into.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: as `load`; frozen parameters are int8; or the checkpoint is there already.
    """
    import orbax.checkpoint as ocp

    model = load(path)
    target = epath.Path(os.path.abspath(out)) / f"checkpoint_{model.step}"
    _check_free(str(target))
    params = {p: x.astype(np.float32) if _is_float(x) else x for p, x in _arrays(model).items()}
    state = {"target": trees.unflatten(params), "state": {"step": np.asarray(model.step, np.int32)}}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(target, ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
    return str(target)


def to_big_vision(path: str, out: str, part: str | None = None) -> None:
    """Writes parameters of a run or a bundle as an .npz file of big_vision.

    bf16 arrays are stored as big_vision stores them, as two bytes each.

    Args:
        path: a run or a bundle.
        out: the file, which ends in .npz.
        part: `encoder` writes the ViT alone, under the names of big_vision's own `vit` with `scan=True`; another part
            is written alone likewise. None writes all, under `encoder/`, `adapter/` and `decoder/`, which
            `file.npz:encoder` addresses in big_vision.

    Raises:
        UserError: as `load`; the model has no such part; the encoder is no ViT of big_vision's kind; or the file is
            there already.
    """
    if not out.endswith(".npz"):
        raise UserError(f"{out} does not end in .npz, by which big_vision knows such files. Rename it.")
    _check_free(out)
    model = load(path)
    config = model.description.model
    if part is not None and part not in config.parts:
        raise UserError(f"The model has no part {part!r}; its parts are {', '.join(config.parts)}. Name one of these.")
    if part == "encoder":
        check_plain_vit(config.encoder)
    arrays = _arrays(model)
    if part is not None:
        arrays = {p.removeprefix(f"{part}/"): x for p, x in arrays.items() if p.startswith(f"{part}/")}
    unfinished, named = f"{out}.unfinished", dict[str, Any](arrays)
    with open(unfinished, "wb") as file:
        np.savez(file, **named)
    os.replace(unfinished, out)


def check_plain_vit(config: Any) -> None:
    """Refuses an encoder that is no ViT as big_vision's.

    Raises:
        UserError: it is another kind, or a field of it has a value that big_vision's ViT does not have.
    """
    if not isinstance(config, ViTConfig):
        raise UserError(f"The encoder is a {type(config).__name__}; expected a ViTConfig, of which big_vision has one.")
    found = {name: getattr(config, name) for name in _PLAIN_VIT}
    other = [f"{name} = {value!r}" for name, value in found.items() if value != _PLAIN_VIT[name]]
    if other:
        raise UserError(
            f"The encoder has {', '.join(other)}, which big_vision's ViT does not know. Only ViTs of its own kind "
            "(SigLIP's, PaliGemma's) can be exported for it."
        )


def _arrays(model: TrainedModel) -> dict[str, np.ndarray]:
    flat = trees.flatten(model.params)
    if any(quantization.is_quantized(x) for x in flat.values()):
        raise UserError(
            "The model was trained between int8 weights, which neither package has. Export the float weights that "
            "they were made of."
        )
    return {path: np.asarray(x) for path, x in flat.items()}


def _is_float(x: np.ndarray) -> bool:
    return x.dtype.kind in "fV"


def _check_free(path: str) -> None:
    folder.check(os.path.dirname(os.path.abspath(path)), "The place to write to")
    if os.path.exists(path):
        raise UserError(f"{path} is there already. Remove it, or give another name.")
