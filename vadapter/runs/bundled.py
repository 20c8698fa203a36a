"""Bundles between runs: one is made of a run's checkpoint, and read again with its backbones."""

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.array_types import PyTree
from vadapter.base.errors import UserError
from vadapter.base.paths import relative, resolve
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import Partitioner, abstract_params
from vadapter.runs import bundle as bundles
from vadapter.runs import description as descriptions
from vadapter.runs.bundle import Backbone, Bundle
from vadapter.runs.description import Description
from vadapter.runs.shapes import example
from vadapter.training import checkpoints, freezing, initialize
from vadapter.training.sources import Offer, Reference, Source, check_same, look


def export(checkpoint: str, out: str, step: int | None = None) -> Bundle:
    """Makes a bundle of a run.

    Args:
        checkpoint: a MODEL_DIR, or one of its `checkpoint_<step>` folders.
        out: folder to write.
        step: which checkpoint; default the latest.

    Raises:
        UserError: the folder is not that of a run with an adapter, a source of the run has changed, or there is
            something at `out`.
    """
    model_dir, step = checkpoints.locate(checkpoint, step)
    description = descriptions.load(model_dir)
    if not isinstance(description.model, VLMConfig) or description.model.adapter is None:
        raise UserError(f"{model_dir} holds a model without an adapter. Export a run of stage 1 or 2.")
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        run, stored = checkpointer.run(step), checkpointer.shapes(step)
        own = checkpointer.read(step, stored)
    abstract = trees.flatten(nn.unbox(abstract_params(VLM(description.model), example(description.model))))
    frozen = {path: x for path, x in abstract.items() if path not in own}
    taken: dict[str, np.ndarray] = {}
    backbones = []
    for reference, offer, paths in _givers(run, abstract, frozen, model_dir):
        parts = Counter()
        for path in paths:
            parts[path.split("/")[0]] += frozen[path].size
        if parts.pop("adapter", None):
            check_same(reference, offer.reference(offer.folder, frozen), f"The run {model_dir}")
            inner = {path: offer.taken[path] for path in paths if path.startswith("adapter/")}
            taken |= _read(offer, inner)
        if parts:
            path = relative(offer.folder, out)
            backbones.append(Backbone(dict(parts), path, reference.step, reference.rules, reference.sha256))
    training = {**description.training, **_outcome(model_dir, step), "sources": _names(run)}
    moved = dataclasses.replace(description.moved(model_dir, out), training=training)
    return bundles.write(out, moved, {**taken, **own}, step=step, backbones=backbones, frozen=list(taken))


def _givers(
    run: Mapping[str, Any], abstract: Mapping[str, Any], frozen: Collection[str], model_dir: str
) -> list[tuple[Reference, Offer, list[str]]]:
    """The sources that frozen parameters are from, each with the paths of those. Reads no weights."""
    references = [Reference.from_json(record) for record in run["sources"]]
    needed = [reference for reference in references if reference.frozen]
    offers = [look(Source(resolve(r.path, model_dir), r.rules, r.step), abstract) for r in needed]
    giver = {path: i for i, offer in enumerate(offers) for path in offer.taken if path in frozen}
    paths = [[path for path, j in giver.items() if j == i] for i in range(len(offers))]
    return [found for found in zip(needed, offers, paths, strict=True) if found[2]]


def _read(offer: Offer, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Reads `{path in the model: path in the checkpoint}` as stored."""
    with checkpoints.Checkpointer(offer.folder, read_only=True) as checkpointer:
        found = checkpointer.read(offer.step, {old: offer.stored[old] for old in names.values()})
    return {path: found[old] for path, old in names.items()}


def _outcome(model_dir: str, step: int) -> dict[str, Any]:
    """How the training ended, if it ended at this step."""
    file = epath.Path(model_dir) / "done.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    return {key: done[key] for key in ("metrics", "evals", "seconds")} if done.get("step") == step else {}


def _names(run: Mapping[str, Any]) -> list[str]:
    return [f"{record['path']} at step {record['step']}, sha256 {record['sha256']}" for record in run["sources"]]


@dataclasses.dataclass(frozen=True)
class Opened:
    """A bundle and the folders that have its backbones.

    Attributes:
        bundle: as read.
        description: the bundle's.
        references: the backbones, with the folders that they are in now.
        folders: where its tokenizer may be too.
    """

    bundle: Bundle
    description: Description
    references: tuple[Reference, ...]
    folders: tuple[str, ...]

    def params(self, boxed: PyTree, partitioner: Partitioner) -> dict[str, Any]:
        """Returns all parameters, on the device.

        Raises:
            UserError: the bundle is damaged, or a backbone has other weights than the bundle was trained with.
        """
        dtype = self.description.frozen_dtype
        params = initialize.assemble(
            self.bundle.arrays(),
            self.references,
            boxed,
            partitioner,
            resolve=lambda reference: reference.path,
            frozen_dtype=dtype,
            what=f"The bundle {self.bundle.folder}",
        )
        flat = trees.flatten(params)
        frozen = trees.unflatten({path: flat.pop(path) for path in self.bundle.frozen})
        return trees.merge(trees.unflatten(flat), freezing.cast(frozen, False, dtype))


def open_bundle(path: str, encoder: str | None = None, decoder: str | None = None) -> Opened:
    """Opens a bundle and finds its backbones. Reads no weights.

    Args:
        path: the bundle.
        encoder: an imported folder or a MODEL_DIR that has the encoder; default where the bundle says.
        decoder: likewise; a bundle that has its decoder itself may still find its tokenizer there.

    Raises:
        UserError: it is no bundle, or a backbone is not there.
    """
    bundle = bundles.read(path)
    given = {part: folder for part, folder in (("encoder", encoder), ("decoder", decoder)) if folder}
    needed = {part for backbone in bundle.backbones for part in backbone.parts}
    reads = {"decoder"} if bundle.description.text and bundle.description.text.vocabulary else set()
    if unneeded := sorted(given.keys() - needed - reads):
        raise UserError(f"--{unneeded[0]} was given, but {path} has its {unneeded[0]} itself. Leave the option out.")
    references = tuple(_locate(backbone, bundle, given) for backbone in bundle.backbones)
    return Opened(bundle, bundle.description, references, (*given.values(), *(r.path for r in references)))


def _locate(backbone: Backbone, bundle: Bundle, given: Mapping[str, str]) -> Reference:
    folders = {given[part] for part in backbone.parts if part in given}
    if len(folders) > 1:
        raise UserError(
            f"{bundle.folder} takes {' and '.join(backbone.parts)} from one folder; two were given: "
            f"{', '.join(sorted(folders))}. Give the one that has both."
        )
    folder = folders.pop() if folders else resolve(backbone.path, bundle.folder)
    try:
        folder, step = _checkpoint(folder, backbone.step) if given else checkpoints.locate(folder, backbone.step)
    except UserError as e:
        options = " and ".join(f"--{part}=DIR" for part in backbone.parts)
        raise UserError(
            f"The {' and '.join(backbone.parts)} of the bundle {bundle.folder} cannot be read. {e} Or say with "
            f"{options} where these weights are (sha256 {backbone.sha256}): a folder that vadapter import or vadapter "
            "train wrote."
        ) from e
    return Reference(folder, step, backbone.rules, backbone.sha256, frozen=sum(backbone.parts.values()), initial=0)


def _checkpoint(folder: str, step: int) -> tuple[str, int]:
    """The checkpoint of that step, or else the latest: imported weights and a run's are counted differently."""
    found, latest = checkpoints.locate(folder)
    return (found, step) if found == folder.rstrip("/") and step in checkpoints.steps(found) else (found, latest)


def of_arguments(args: Any) -> Opened | None:
    """Opens the bundle that a command was given (`arguments.add_model_arguments`); None where it was given a run.

    Raises:
        UserError: as `open_bundle`; or options of a run and of a bundle are mixed.
    """
    mixed = ("step",) if args.bundle else ("encoder", "decoder")
    if wrong := [name for name in mixed if getattr(args, name) is not None]:
        raise UserError(
            f"--{wrong[0]} goes with --{'model_dir' if args.bundle else 'bundle'}, which was not given. Leave it out."
        )
    return open_bundle(args.bundle, args.encoder, args.decoder) if args.bundle else None
