"""What has to be known to use a trained model, as JSON: `model.json` of a run and the greater part of `bundle.json`.

Whoever has it needs neither the gin files nor the data that the model was trained with.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

import vadapter
from vadapter.base import files, json_text, resizing, typed
from vadapter.base.errors import UserError
from vadapter.base.paths import absolute, relative, resolve
from vadapter.data.reading import tiles
from vadapter.data.rows.preprocessors import CHAT
from vadapter.data.rows.sizes import WHOLE, Views
from vadapter.models.configuration import ModelConfig
from vadapter.models.serialization import from_json, to_json
from vadapter.models.vit import ViTConfig

if TYPE_CHECKING:
    from vadapter.runs.experiment import Evaluation, Experiment
    from vadapter.training.optimizers import OptimizerConfig

FORMAT = 1
FILE = "model.json"


@dataclasses.dataclass(frozen=True)
class Text:
    """How text becomes ids, and what the model was asked in training.

    Attributes:
        vocabulary: path of the vocabulary, relative to the folder of the file that names it; empty is the one that
            ships with vadapter.
        sha256: of the vocabulary.
        lengths: `inputs` and `targets`, see `LoaderConfig`.
        prompts: the templates of `caption`, `image_question` and `video_question`, as far as it was trained on them.
        prompt_format: how a template becomes the text of a row, see `vadapter.data`.
    """

    vocabulary: str
    sha256: str
    lengths: Mapping[str, int]
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt_format: str = "plain"


@dataclasses.dataclass(frozen=True)
class Description:
    """A trained model, but for its weights.

    Attributes:
        model: its configuration.
        text: None for a model that reads and writes none.
        resize: how pictures became square, see `resizing.parse`.
        max_tiles: most tiles that follow an image of a conversation, see `chat_task`; 0 is the image alone.
        clips: whether images of conversations are clips that stand still, in rows for videos.
        frozen_dtype: dtype that frozen parameters had in training.
        training: JSON-serialisable facts of the training, for readers.
    """

    model: ModelConfig
    text: Text | None = None
    resize: str = "stretch"
    max_tiles: int = dataclasses.field(default=0, kw_only=True)
    clips: bool = dataclasses.field(default=False, kw_only=True)
    frozen_dtype: str = "bfloat16"
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def chats(self) -> bool:
        """Whether it was trained on conversations."""
        training = self.training  # facts for readers: a file may say anything there
        tasks = training.get("preprocessors") if isinstance(training, Mapping) else None
        found = [steps for steps in tasks.values() if isinstance(steps, list)] if isinstance(tasks, Mapping) else []
        return any(isinstance(step, Mapping) and step.get("name") == "Chat" for steps in found for step in steps)

    @property
    def views(self) -> Views:
        """How it sees pictures that a prompt asks about."""
        if not self.max_tiles and not self.clips:
            return WHOLE
        prompts = self.text.prompts.values() if self.text else ()
        return Views(self.max_tiles, self.clips, frozenset(prompts) - {CHAT})

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-serialisable dict."""
        return {
            "format": FORMAT,
            "vadapter": vadapter.__version__,
            "model": to_json(self.model),
            "preprocessing": preprocessing(self),
            "text": dataclasses.asdict(self.text) if self.text else None,
            "frozen_dtype": self.frozen_dtype,
            "training": dict(self.training),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> "Description":
        """Reads `to_json`'s dict; `where` is what it was read from.

        Raises:
            UserError: another version of vadapter wrote it, or something is missing.
        """
        found = record.get("format") if isinstance(record, Mapping) else None
        if found != FORMAT:
            raise UserError(
                f"{where} has the format {found!r}; this version of vadapter, {vadapter.__version__}, reads the format "
                f"{FORMAT}. Use the version that wrote it ({_version(record)})."
            )
        try:
            text, model = record["text"], from_json(record["model"], where)
            fields = {
                "model": model,
                "text": None if text is None else Text(**text),
                "resize": record["preprocessing"].get("resize", "stretch"),
                "max_tiles": record["preprocessing"].get("max_tiles", 0),
                "clips": record["preprocessing"].get("clips", False),
                "frozen_dtype": record["frozen_dtype"],
                "training": record["training"],
            }
            if problem := typed.wrong(cls, {k: v for k, v in fields.items() if k != "training"}) or (
                typed.wrong(Text, text) if text else ""
            ):
                raise TypeError(problem)
            resizing.parse(fields["resize"])
            if (text and min(map(text["lengths"].__getitem__, ("inputs", "targets"))) < 1) or not model.parts:
                raise ValueError("lengths without room")
            if not 0 <= fields["max_tiles"] <= tiles.MOST:
                raise ValueError(f"max_tiles {fields['max_tiles']}")
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            if isinstance(e, UserError):
                raise
            raise UserError(f"{where} is not as vadapter writes it ({e}). Use the file as it was written.") from e

    def moved(self, old: str, new: str) -> "Description":
        """Returns it for the folder `new`, given that of the folder `old`: paths relative to it change."""
        if self.text is None or not self.text.vocabulary:
            return self
        path = relative(resolve(self.text.vocabulary, old), new)
        return dataclasses.replace(self, text=dataclasses.replace(self.text, vocabulary=path))


def preprocessing(description: Description) -> dict[str, Any]:
    """Returns what happens to a picture before the encoder; {} without an encoder."""
    model = description.model
    if model.encoder is None:
        return {}
    sizes, encoder = model.data_sizes(), model.encoder
    frames = {"num_frames": sizes["num_frames"]} if "num_frames" in sizes else {}
    # An encoder of another kind may normalise pixels in its own way.
    normalised = {name: list(getattr(encoder, name)) for name in ("mean", "std") if hasattr(encoder, name)}
    chats = {"max_tiles": description.max_tiles, "clips": description.clips}
    chats = {name: value for name, value in chats.items() if value}
    return {"image_size": encoder.image_size, **normalised, "resize": description.resize, **frames, **chats}


def save(folder: str, description: Description) -> None:
    """Writes `model.json` into a MODEL_DIR, which is made if it is not there."""
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    files.write_json(epath.Path(folder) / FILE, description.to_json())


def load(folder: str) -> Description:
    """Reads `model.json` of a MODEL_DIR.

    Raises:
        UserError: there is none, or it is not what this version reads.
    """
    file = epath.Path(folder) / FILE
    if not file.exists():
        raise UserError(
            f"{folder} has no {FILE}, which vadapter train writes. Put it back; where an older version trained this "
            "run, give its config.gin to vadapter train once more: that writes the file and does not train again."
        )
    return Description.from_json(read_json(str(file)), str(file))


def check_same_pictures(folder: str, now: Description) -> None:
    """Refuses to go on with a run whose encoder would see pictures otherwise than so far.

    Args:
        folder: MODEL_DIR of the run. Without `model.json` there is nothing to compare with.
        now: of the settings that the run is given now.

    Raises:
        UserError: pictures become square in another way, or the encoder's table of positions is resampled in another.
    """
    if not (epath.Path(folder) / FILE).exists():
        return
    before = load(folder)
    old, new = before.model.encoder, now.model.encoder
    if old is None or new is None:
        return
    if resizing.parse(before.resize) != resizing.parse(now.resize):
        raise UserError(
            f"The run {folder} was trained on pictures that became square by {before.resize!r}; it is now given "
            f"{now.resize!r}. Set encoder.resize, or the resize of the data set, to the former to go on; or start a "
            "new run in another MODEL_DIR."
        )
    if isinstance(old, ViTConfig) and isinstance(new, ViTConfig) and _positions(old) != _positions(new):
        raise UserError(
            f"The encoder of the run {folder} had {_positions(old)}; it is now given {_positions(new)}. Set "
            f"encoder.position_grid to {old.position_grid} and encoder.position_resampling to "
            f"{old.position_resampling!r} to go on; or start a new run in another MODEL_DIR."
        )


def _positions(encoder: ViTConfig) -> str:
    grid = encoder.position_grid
    if grid is None or grid == encoder.grid:
        return "positions of its own image size"
    return f"positions of {grid} x {grid} patches, resampled ({encoder.position_resampling})"


def read_json(file: str) -> Any:
    """Returns the content of a JSON file. Raises `UserError` if it is no JSON."""
    try:
        return json_text.read(file)
    except (OSError, ValueError) as e:
        raise UserError(f"{file} is not valid JSON: {e}. Use the file as it was written.") from e


def _version(record: Any) -> str:
    return str(record.get("vadapter", "unknown")) if isinstance(record, Mapping) else "unknown"


def describe(experiment: "Experiment") -> Description:
    """Returns all that has to be known to use the model of an experiment. Its tasks are registered by now."""
    from vadapter.data import mixture_description
    from vadapter.runs import batches

    found = mixture_description.describe(experiment.data.mixture)
    resize = found.pop("resize") or batches.for_model(experiment.model).resize
    steps, max_tiles, clips = found.pop("preprocessors"), found.pop("max_tiles"), found.pop("clips")
    text = None
    if found:
        path = found.pop("vocabulary")
        path = relative(absolute(path), experiment.model_dir) if path else ""
        text = Text(vocabulary=path, lengths=dict(experiment.data.lengths), **found)
    return Description(
        model=experiment.model,
        text=text,
        resize=resize,
        max_tiles=max_tiles,
        clips=clips,
        frozen_dtype=experiment.train.frozen_dtype,
        training={**_training(experiment), "preprocessors": steps},
    )


def _training(experiment: "Experiment") -> dict[str, Any]:
    data, train = experiment.data, experiment.train
    return {
        "steps": train.steps,
        "mixture": data.mixture,
        "split": data.split,
        "batch_size": data.batch_size,
        "seed": experiment.seed,
        "trainable": list(train.trainable),
        "optimizer": _plain(train.optimizer),
        "objective": dataclasses.asdict(experiment.objective),
        "ema_decay": train.ema_decay,
        "use_ema": train.use_ema,
        "best": None if train.best is None else dataclasses.asdict(train.best),
        "evaluations": {each.name: _evaluation(each) for each in experiment.evaluations},
    }


def _evaluation(evaluation: "Evaluation") -> dict[str, Any]:
    """What changes the figures of an evaluation, and when they are measured."""
    data, decoding = evaluation.data, dataclasses.asdict(evaluation.decoding)
    return {
        "kind": evaluation.kind,
        "every_steps": evaluation.every_steps,
        "benchmark": evaluation.benchmark,
        "metrics": list(evaluation.metrics),
        "data": {"mixture": data.mixture, "split": data.split, "limit": data.eval_limit},
        **({"decoding": decoding} if evaluation.kind == "generation" else {}),
    }


def _plain(config: "OptimizerConfig") -> dict[str, Any]:
    """The settings that are set: tuples become lists in JSON."""
    return {name: value for name, value in dataclasses.asdict(config).items() if value not in (None, ())}
