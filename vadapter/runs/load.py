"""A trained model: that of a run or of a bundle, without gin and without its training data."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.paths import resolve
from vadapter.data.rows import vocabulary as vocabularies
from vadapter.models.attention import PLATFORMS
from vadapter.partitioning import Partitioner, abstract_params
from vadapter.runs import bundle as bundles
from vadapter.runs import description as descriptions
from vadapter.runs.bundle import Backbone, Bundle
from vadapter.runs.description import Description, Text
from vadapter.runs.model import TrainedModel
from vadapter.training import checkpoints, initialize
from vadapter.training.sources import Reference, Source, look
from vadapter.training.storage import Storage


def load(
    path: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    step: int | str | None = None,
    ema: bool | None = None,
    partitioner: Partitioner | None = None,
) -> TrainedModel:
    """Reads a trained model.

    Args:
        path: a bundle; the MODEL_DIR of a run, or one of its `checkpoint_<step>` folders.
        encoder: an imported folder or a MODEL_DIR that has the encoder's weights; default where the run or the bundle
            says.
        decoder: likewise; its tokenizer is looked for there too.
        step: which checkpoint of a run, or `best`; default the latest.
        ema: whether to take the moving average of what a run trained; default as the run says (`TrainConfig.use_ema`).
        partitioner: places the parameters; default all devices on the data axis.

    Raises:
        UserError: it is neither a run nor a bundle; it is damaged; weights or the vocabulary that it was trained with
            are missing, or there are only others.
    """
    path, partitioner = os.fspath(path), partitioner or Partitioner()
    given = {part: os.fspath(folder) for part, folder in (("encoder", encoder), ("decoder", decoder)) if folder}
    if bundles.is_bundle(path):
        if step is not None:
            raise UserError(f"{path} is a bundle, which has one checkpoint only. Leave the step {step} out.")
        if ema is not None:
            raise UserError(
                f"{path} is a bundle, which has one set of weights. Say nothing of the moving average (EMA)."
            )
        return _load_bundle(bundles.read(path), given, partitioner)
    if not epath.Path(path).exists():
        raise UserError(
            f"{path} is not there. Give the folder of a run (vadapter train) or a bundle (vadapter export)."
        )
    return _load_run(path, step, given, partitioner, ema)


def _load_run(
    path: str, step: int | str | None, given: Mapping[str, str], partitioner: Partitioner, ema: bool | None
) -> TrainedModel:
    model_dir, step = checkpoints.locate(path, step)
    description = _runnable(descriptions.load(model_dir))
    with checkpoints.Checkpointer(model_dir, read_only=True) as checkpointer:
        references = [Reference.from_json(r) for r in checkpointer.run(step)["sources"]]
    vocabulary = find_vocabulary(description.text, model_dir, given.values()) if description.text else None
    model, boxed = _made(description, model_dir)
    found = _replaced(references, given, trees.flatten(nn.unbox(boxed)), model_dir)
    restored = initialize.restore(model_dir, boxed, partitioner, step, found, ema)
    return TrainedModel(model, restored.params, partitioner, description, vocabulary, step, model_dir)


def _load_bundle(bundle: Bundle, given: Mapping[str, str], partitioner: Partitioner) -> TrainedModel:
    description = _runnable(bundle.description)
    needed = {part for backbone in bundle.backbones for part in backbone.parts}
    reads = {"decoder"} if description.text and description.text.vocabulary else set()
    if unneeded := sorted(given.keys() - needed - reads):
        raise UserError(
            f"--{unneeded[0]} was given, but {bundle.folder} has its {unneeded[0]} itself. Leave the option out."
        )
    references = [_locate(backbone, bundle, given) for backbone in bundle.backbones]
    folders = [*given.values(), *(reference.path for reference in references)]
    vocabulary = find_vocabulary(description.text, bundle.folder, folders) if description.text else None
    model, boxed = _made(description, bundle.folder)
    arrays = bundle.arrays()
    storage = Storage.of(boxed, partitioner, arrays.keys() - set(bundle.frozen), description.frozen_dtype)
    params = initialize.assemble(arrays, references, boxed, storage, f"The bundle {bundle.folder}")
    return TrainedModel(model, params, partitioner, description, vocabulary, bundle.step, bundle.folder)


def _made(description: Description, where: str) -> tuple[nn.Module, Any]:
    """The module of a description and the shapes of its parameters, of which nothing is made."""
    try:
        model = description.model.make()
        return model, abstract_params(model, description.model.example_batch())
    except UserError:
        raise
    except Exception as e:  # whatever modules raise on sizes that do not fit one another
        raise UserError(
            f"The model that {where} describes cannot be made: its values do not fit one another "
            f"({type(e).__name__}: {str(e).splitlines()[0][:300] if str(e) else ''}). Use the file as it was written."
        ) from e


def _replaced(
    references: Sequence[Reference], given: Mapping[str, str], abstract: Mapping[str, Any], model_dir: str
) -> list[Reference]:
    """The references of a run, each with the folder where it is now."""
    found = [dataclasses.replace(r, path=resolve(r.path, model_dir)) for r in references]
    for part, folder in given.items():
        for i, reference in enumerate(found):
            if reference.frozen and part in _parts(folder, reference, abstract):
                path, step = _checkpoint(folder, reference.step)
                found[i] = dataclasses.replace(reference, path=path, step=step)
                break
        else:
            if part != "decoder":  # a folder of the decoder may have the tokenizer alone
                raise UserError(
                    f"--{part} was given, but {model_dir} takes its {part} from no other folder, or from none like "
                    f"{folder}. Leave the option out, or give the folder that vadapter import wrote."
                )
    return found


def _parts(folder: str, reference: Reference, abstract: Mapping[str, Any]) -> set[str]:
    """The parts of the model that a folder gives by the rules of a reference; none if it does not fit them."""
    path, step = _checkpoint(folder, reference.step)
    try:
        offer = look(Source(path, reference.rules, step), abstract)
    except UserError:
        return set()
    return {taken.split("/")[0] for taken in offer.taken}


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


def runnable(config: Any) -> Any:
    """Returns a model's configuration, all parts with an implementation of attention that this machine has."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    fields: dict[str, Any] = {field.name: runnable(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if "attention_impl" in fields and PLATFORMS.get(fields["attention_impl"]) != jax.default_backend():
        fields["attention_impl"] = "xla"
    return dataclasses.replace(config, **fields)


def _runnable(description: Description) -> Description:
    return dataclasses.replace(description, model=runnable(description.model))


def find_vocabulary(text: Text, folder: str, others: Iterable[str] = ()) -> vocabularies.TextVocabulary:
    """Opens the vocabulary that a model was trained with.

    Args:
        text: of the model.
        folder: that the path of the vocabulary is relative to.
        others: folders that may have it as well: those of the backbones.

    Raises:
        UserError: there is none, or only others.
    """
    recorded = resolve(text.vocabulary, folder) if text.vocabulary else ""
    places = [recorded, *(place for place in others if text.vocabulary and (epath.Path(place) / "tokenizer").is_dir())]
    found = {place: vocabularies.sha256(place) for place in places if not place or epath.Path(place).exists()}
    same = [place for place, sha256 in found.items() if sha256 == text.sha256]
    if not same:
        there = ", ".join(f"{place or 'the shipped one'} with {sha256}" for place, sha256 in found.items())
        raise UserError(
            f"{folder} was trained with a vocabulary whose sha256 is {text.sha256}, expected at "
            f"{recorded or 'its place'}; found {there or 'nothing there'}. Put it back, or give with --decoder an "
            "imported folder that has it."
        )
    return vocabularies.load_vocabulary(same[0], text.prompt_format)
