"""The feature cache of a run: what its frozen parts make of the training data's media, written once.

Frozen parts give the same for the same picture at every step. `vadapter cache` writes the vision encoder's patch tokens
of each record, and a run with `Experiment.feature_cache` reads them in place of pictures, so that a step has no
encoder in it. Where the adapter's tiny LM is frozen and writes words (`LMAdapterConfig.num_words`), its words can be
kept too: writing them takes a forward pass a word.

The features are told by what they were made from (`facts`): hashes of weights, the configuration, the way pictures
become square, the records. A cache of something else is refused. Evaluations read pictures, as the trained model does.

Words depend on what stands before them too: the front's map and the prompt's vectors. Where the run trains those, the
words are the ones that the run's *first* parameters write, and stay; the trained model writes its own.
"""

import dataclasses
import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base import fingerprints
from vadapter.base.array_types import Array
from vadapter.base.batch import Features
from vadapter.base.errors import UserError
from vadapter.data.order import groups
from vadapter.data.order.groups import Group
from vadapter.data.reading import features as stores
from vadapter.data.reading import loading
from vadapter.data.reading.features import Layout, Part, Store
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.serialization import to_json
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning.gather import local_rows
from vadapter.runs.batches import for_model
from vadapter.runs.experiment import Experiment, Parts
from vadapter.training import initialize
from vadapter.training.freezing import size_text
from vadapter.training.initialize import print_once

# How the encoder computes, and not what.
_NOT_VALUES = ("attention_impl", "remat")


def write(
    experiment: Experiment,
    folder: str,
    *,
    dtype: str | None = None,
    words: bool = False,
    part: tuple[int, int] = (1, 1),
    say: Callable[[str], None] = print_once,
    progress: Callable[[str, int, int], None] | None = None,
) -> Store:
    """Writes the features of an experiment's training data, or what is missing of them.

    Args:
        experiment: whose frozen parts and data; it is not trained.
        folder: to write, or to go on with.
        dtype: of the tokens: `bfloat16`; `float32`; or `int8`, with a scale a token. Default that in which the encoder
            computes, which loses nothing.
        words: whether to write the words of the adapter's tiny LM too.
        part: (i, n) writes the i-th of n shares of the files, so that n machines can work beside one another.
        say: is given a line on what is done.
        progress: is called with "records", those done, and all.

    Raises:
        UserError: a part that makes features is trained; the folder holds others; or as training.
    """
    kept: str = dtype or getattr(experiment.model.encoder, "dtype", "bfloat16")
    stores.check_dtype(kept)
    index, count = part
    if not 1 <= index <= count:
        raise UserError(f"Expected a part i/n with i from 1 to n, such as 1/4; found {index}/{count}.")
    experiment = dataclasses.replace(experiment, feature_cache=None)
    parts = Parts(experiment)
    made = facts(experiment, parts, words)
    store = _store(experiment, folder, kept, words)
    stores.describe(folder, made, store)
    missing = set(store.missing())
    mine = [place for place in store.places()[index - 1 :: count] if place in missing]
    total = sum(len(store.parts[task].rows(shard)) for task, shard in mine)
    say(f"{folder}: {total:,} records to write; whole, the cache has {size_text(store.nbytes())}.")
    if mine:
        _write(store, mine, parts, words, lambda done: progress("records", done, total) if progress else None)
    return store


def opened(experiment: Experiment, parts: Parts) -> Store:
    """Opens the feature cache that an experiment names.

    Raises:
        UserError: it is missing, not whole, or of other weights, data or pictures.
    """
    assert experiment.feature_cache is not None
    _check(experiment, parts, words=False)
    store = stores.open_store(experiment.feature_cache, lambda words: facts(experiment, parts, words))
    expected = _store(experiment, experiment.feature_cache, store.layout.dtype, store.layout.words > 0)
    found = {task: dataclasses.replace(part, shard=1) for task, part in store.parts.items()}
    if store.layout != expected.layout or found != {
        task: dataclasses.replace(part, shard=1) for task, part in expected.parts.items()
    }:
        raise UserError(
            f"{experiment.feature_cache}/{stores.FILE} does not have the sizes that its own facts ask for. Delete the "
            "folder, and run vadapter cache again."
        )
    return store


def example(store: Store, pixels: Any) -> Any:
    """Returns the shapes of a batch with features, of the shapes of one with pixels."""
    rows, media, frames = pixels.media.shape[:3]
    layout = store.layout

    def struct(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((rows, media, *sizes), dtype)

    kept = Features(
        tokens=struct(jnp.dtype(layout.dtype), frames, layout.patches, layout.width),
        scale=struct(jnp.float32, frames, layout.patches, 1) if layout.dtype == "int8" else None,
        words=struct(jnp.int32, layout.words) if layout.words else None,
    )
    return pixels.replace(media=kept)


def facts(experiment: Experiment, parts: Parts, words: bool) -> dict[str, Any]:
    """Returns what the features of an experiment depend on, as JSON.

    Args:
        experiment: the settings.
        parts: of it.
        words: whether words are among the features.

    Raises:
        UserError: what makes the features is trained, draws noise, or is not there.
    """
    model = _check(experiment, parts, words)
    sizes = for_model(model)
    encoder = {k: v for k, v in to_json(model.encoder).items() if k not in _NOT_VALUES}
    made: dict[str, Any] = {
        "encoder": {
            "sha256": _sha256(experiment, parts, ("encoder",)),
            "settings": json.loads(json.dumps(encoder)),
            "frozen_dtype": experiment.train.frozen_dtype,
        },
        "tasks": {},
        "split": experiment.data.split,
    }
    for group, task in _tasks(experiment):
        source = task.records.resized(sizes.resize)
        made["tasks"][task.name] = {
            "media": list(group.media_shape),
            "resize": source.resize,
            "frame_sampling": source.frame_sampling,
            "sha256": source.fingerprint(experiment.data.split),
            "records": task.num_examples(experiment.data.split),
        }
    if words:
        handoff = experiment.handoff and {**dataclasses.asdict(experiment.handoff), "source": ""}
        settings = {"adapter": to_json(model.adapter), "frames": model.num_frames, "stills": model.repeat_stills}
        settings |= {"handoff": handoff, "seed": experiment.seed}
        made["words"] = {
            "sha256": _sha256(experiment, parts, ("adapter/lm", "adapter/front")),
            "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        }
    return made


def _check(experiment: Experiment, parts: Parts, words: bool) -> VLMConfig:
    """Refuses what has no features, or features that change."""
    model = experiment.model
    if not isinstance(model, VLMConfig) or model.encoder is None:
        raise UserError(
            f"A feature cache is of a vision encoder in front of an adapter; {type(model).__name__} has none. Give an "
            "experiment of stage 1 or 2."
        )
    if trained := [path for path in parts.trained if path.startswith("encoder/")]:
        raise UserError(
            f"The run trains the vision encoder ({trained[0]}), so what it makes of a picture changes at every step. "
            "Freeze it (TRAINABLE), or train without a feature cache."
        )
    if model.quantization is not None and model.quantization.kind == "gumbel":
        raise UserError(
            "Gumbel noise follows from a row's pixels, which a run with a feature cache does not read. Take another "
            "kind of quantization, or train without a feature cache."
        )
    for _, task in _tasks(experiment):
        if task.records.media == "video" and task.records.frame_sampling == "random":
            raise UserError(
                f"Task {task.name} takes other frames of a video each time (frame_sampling 'random'), so it has no "
                "features to keep. Set it to 'uniform', or train without a feature cache."
            )
    if words:
        adapter = model.adapter
        if not isinstance(adapter, LMAdapterConfig) or not adapter.num_words:
            raise UserError(
                "Words are written by an adapter with a tiny LM and num_words above 0; this one writes none. Leave "
                "--words out, or take such an adapter (models/adapters/words.gin)."
            )
        if trained := [path for path in parts.trained if path.startswith("adapter/lm/")]:
            raise UserError(
                f"The run trains the tiny LM that writes the words ({trained[0]}), so they change at every step. "
                "Freeze it (TRAINABLE), or leave --words out."
            )
        if experiment.bundle:
            raise UserError("Words cannot be kept for a run that starts from a bundle. Leave --words out.")
    return model


def _tasks(experiment: Experiment) -> Iterator[tuple[Group, Any]]:
    """The tasks of the training data with their groups."""
    data = experiment.data
    with_records = groups.tasks_with_records(data.mixture, data.split)
    for group in groups.grouped(data.mixture, with_records, data.lengths, for_model(experiment.model)):
        yield from ((group, task) for task in group.tasks)


def _sha256(experiment: Experiment, parts: Parts, prefixes: tuple[str, ...]) -> str:
    """The hash of what the run's sources give for some parts of the model, under its paths there."""
    offers = initialize.offers(parts.shapes, experiment.sources)
    hashes: dict[str, fingerprints.ArrayHash] = {}
    for offer in offers:  # a later one wins
        mine = [path for path in offer.taken if any(path.startswith(f"{prefix}/") for prefix in prefixes)]
        hashes |= offer.hashes(mine)
    return fingerprints.combine(hashes)


def _store(experiment: Experiment, folder: str, dtype: str, words: bool) -> Store:
    model: Any = experiment.model
    layout = Layout(model.encoder.num_patches, model.encoder.width, dtype, model.adapter.num_words if words else 0)
    found = {
        task.name: Part.of(task.num_examples(experiment.data.split), group.media_shape, layout)
        for group, task in _tasks(experiment)
    }
    return Store(folder, layout, found)


def _write(
    store: Store, places: Sequence[tuple[str, int]], parts: Parts, words: bool, done: Callable[[int], None]
) -> None:
    """Makes the features of some shards and writes each when it is whole."""
    from vadapter.runs import train  # it opens feature caches

    experiment = parts.experiment
    if words:
        with tempfile.TemporaryDirectory() as scratch:  # a hand-off leaves its record in the run's folder
            params, _ = train.fresh(dataclasses.replace(experiment, model_dir=scratch), parts)
    else:
        params = initialize.read(parts.shapes, experiment.sources, parts.storage, "encoder/")
    make, count = _maker(parts, store.layout, words), 0
    for place, shard in itertools.groupby(_loaded(experiment, store, places), lambda found: found[0]):
        pieces = []
        for _, loaded in shard:
            pieces.append(_made(store.dtype(place[0]), loaded, make, params, parts))
            count += len(pieces[-1])
            done(count)
        store.write(*place, np.concatenate(pieces))


def _loaded(
    experiment: Experiment, store: Store, places: Sequence[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int], loading.Loaded]]:
    """Yields the media of shards in order, at most a batch at a time, while threads read ahead."""
    tasks = {task.name: (group, task) for group, task in _tasks(experiment)}
    split, most = experiment.data.split, experiment.data.batch_size
    for name, some in itertools.groupby(places, lambda place: place[0]):
        group, task = tasks[name]
        rows = {place: np.asarray(store.parts[name].rows(place[1]), np.int64) for place in some}
        chunks = [(place, x[i : i + most]) for place, x in rows.items() for i in range(0, len(x), most)]
        plans = ([loading.Share(0, np.arange(len(x)), x, np.zeros_like(x))] for _, x in chunks)
        read = loading.load([task.records.resized(group.sizes.resize)], split, plans, group.media_shape)
        yield from ((place, found) for (place, _), found in zip(chunks, loading.read_ahead(read, 2), strict=True))


def _made(
    dtype: np.dtype, loaded: loading.Loaded, make: Callable[..., Features], params: Any, parts: Parts
) -> np.ndarray:
    """The features of some records, [records, M] as the store keeps them."""
    count, rows = len(loaded.records), parts.experiment.data.batch_size
    pixels = np.concatenate([loaded.media, np.repeat(loaded.media[-1:], rows - count, axis=0)])  # one program for all
    found = make(params, parts.partitioner.put_batch(pixels))
    values = np.zeros(loaded.media.shape[:2], dtype)
    stores.stored(values, jax.tree.map(lambda x: local_rows(x)[:count], found))
    values["valid"] = np.asarray([not record["error"] for record in loaded.records])[:, None]
    return values


def _maker(parts: Parts, layout: Layout, words: bool) -> Callable[..., Features]:
    """Jitted `(params, pixels [B, M, F, h, w, 3]) -> Features`."""
    model: Any = parts.model

    def make(params: Any, media: Array) -> Features:
        tokens = model.apply({"params": params}, media, method="patch_tokens")
        scale = None
        if layout.dtype == "int8":
            tokens = tokens.astype(jnp.float32)
            scale = jnp.maximum(jnp.abs(tokens).max(axis=-1, keepdims=True), 1e-12) / 127
            tokens = jnp.round(tokens / scale)
        kept = Features(tokens.astype(jnp.dtype(layout.dtype)), scale)
        if not words:
            return kept
        return dataclasses.replace(kept, words=model.apply({"params": params}, kept, method="written"))

    compiled = jax.jit(make, out_shardings=parts.partitioner.batch_sharding)

    def run(params: Any, media: Any) -> Features:
        with parts.partitioner.activate():
            return compiled(params, media)

    return run
