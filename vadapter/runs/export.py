"""Makes a bundle of a run's checkpoint."""

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.paths import relative, resolve
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import abstract_params
from vadapter.runs import bundle as bundles
from vadapter.runs import card_facts, lora_merging
from vadapter.runs import description as descriptions
from vadapter.runs.bundle import Backbone, Bundle
from vadapter.training import checkpoints
from vadapter.training.sources import Offer, Reference, Source, check_same, look


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    step: int | str | None = None,
    *,
    merge: bool = False,
    ema: bool | None = None,
    license: str | None = None,
    repository: str | None = None,
) -> Bundle:
    """Makes a bundle of a run.

    Args:
        checkpoint: a MODEL_DIR, or one of its `checkpoint_<step>` folders.
        out: folder to write.
        step: which checkpoint, or `best`; default the latest.
        ema: whether to take the moving average of what the run trained; default as the run evaluated.
        merge: adds LoRA to the kernels beside it, which the bundle then holds; the model has no LoRA any more.
        license: of what the run trained, for the card; None says that none was given.
        repository: `owner/name` on the hub, which the examples of the card name; None names the folder.

    Raises:
        UserError: the folder is not that of a run with an adapter, a source of the run has changed, or there is
            something at `out`; or `merge` of a model without LoRA.
    """
    out = os.fspath(out)
    model_dir, step = checkpoints.locate(os.fspath(checkpoint), step)
    description = descriptions.load(model_dir)
    if not isinstance(description.model, VLMConfig) or description.model.adapter is None:
        raise UserError(f"{model_dir} holds a model without an adapter. Export a run of stage 1 or 2.")
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        run, stored = checkpointer.run(step), checkpointer.shapes(step)
        own = checkpointer.read(step, stored, ema=ema)
    abstract = trees.flatten(nn.unbox(abstract_params(VLM(description.model), description.model.example_batch())))
    frozen = {path: x for path, x in abstract.items() if path not in own}
    taken: dict[str, np.ndarray] = {}
    backbones = []
    merged = lora_merging.beside(own) if merge else frozenset()
    if merge and not merged:
        raise UserError(f"{model_dir} trained no LoRA, so there is nothing to merge. Export it without merging.")
    for reference, offer, paths in _givers(run, abstract, frozen, model_dir):
        parts = Counter()
        if inner := [path for path in paths if path in merged]:
            check_same(reference, offer.reference(offer.folder, frozen), f"The run {model_dir}")
            own |= _read(offer, {path: offer.taken[path] for path in inner})
        for path in (path for path in paths if path not in merged):
            parts[path.split("/")[0]] += frozen[path].size
        if parts.pop("adapter", None):
            check_same(reference, offer.reference(offer.folder, frozen), f"The run {model_dir}")
            inner = {path: offer.taken[path] for path in paths if path.startswith("adapter/")}
            taken |= _read(offer, inner)
        if parts:
            path = relative(offer.folder, out)
            backbones.append(Backbone(dict(parts), path, reference.step, reference.rules, reference.sha256))
    if merge:
        own = lora_merging.merged(description.model, own)
        description = dataclasses.replace(description, model=lora_merging.without_lora(description.model))
    facts = {**card_facts.gather(model_dir, step), "sources": _names(run), "license": license}
    training = {**description.training, **facts}
    moved = dataclasses.replace(description.moved(model_dir, out), training=training)
    return bundles.write(
        out, moved, {**taken, **own}, step=step, backbones=backbones, frozen=list(taken), repository=repository
    )


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


def _names(run: Mapping[str, Any]) -> list[str]:
    return [f"{record['path']} at step {record['step']}, sha256 {record['sha256']}" for record in run["sources"]]
