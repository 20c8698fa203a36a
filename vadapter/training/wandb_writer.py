"""Weights & Biases as a writer of metrics, beside TensorBoard (`pip install 'vadapter[wandb]'`).

TrainConfig.writers = [@WandbConfig()]
WandbConfig.project = "adapters"
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vadapter.base import files
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote

FILE = "wandb.json"


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Where a run is logged. Called with the MODEL_DIR it makes the writer.

    Attributes:
        project: name of the project.
        name: of the run; default the end of MODEL_DIR.
        entity: user or team; default the account's own.
        mode: `online`, `offline` (files in MODEL_DIR/wandb, which `wandb sync` sends later) or `disabled`; default as
            WANDB_MODE in the environment says, or online.

    Raises:
        UserError: wandb is not installed, or the mode is not known.
    """

    project: str = "vadapter"
    name: str | None = None
    entity: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "online", "offline", "disabled"):
            raise UserError(f"WandbConfig.mode is {self.mode!r}; expected 'online', 'offline', 'disabled' or None.")
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                "WandbConfig logs to Weights & Biases, and the package wandb is not installed. Run: pip install "
                "'vadapter[wandb]', or take it out of TrainConfig.writers."
            )

    @property
    def place(self) -> str:
        """Where the run is among others: `project`, or `entity/project`."""
        return f"{self.entity}/{self.project}" if self.entity else self.project

    def __call__(self, model_dir: str) -> "WandbWriter":
        """Begins the run, or goes on with the project's in MODEL_DIR/wandb.json. Raises `UserError` if refused."""
        import wandb

        place = f"{model_dir.rstrip('/')}/{FILE}"
        known = files.read_record(place)
        id_ = known.get(self.place)
        try:
            run = wandb.init(
                project=self.project,
                name=self.name or model_dir.rstrip("/").rpartition("/")[2],
                entity=self.entity,
                mode=self.mode,  # pyright: ignore[reportArgumentType]
                dir=None if is_remote(model_dir) else model_dir,
                id=id_ if isinstance(id_, str) else None,
                resume="allow",
                reinit="create_new",  # else a second writer would be given the run of the first, and count all twice
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases refused the run ({error}). Log in with `wandb login`, or set WandbConfig.mode to "
                "'offline'."
            ) from error
        files.write_json(place, {**known, self.place: run.id})
        return WandbWriter(run)


class WandbWriter:
    """The methods of clu's `MetricWriter` that runs use, and tables. `step` is a value, so a run may go back."""

    def __init__(self, run: Any):
        self._run = run
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs numbers by name."""
        self._run.log({"step": step, **scalars})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Logs pictures, uint8 [N, h, w, 3] each."""
        import wandb

        self._run.log({"step": step, **{name: [wandb.Image(x) for x in many] for name, many in images.items()}})

    def write_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table."""
        import wandb

        self._run.log({"step": step, name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def flush(self) -> None:
        """Does nothing: wandb writes beside the training."""

    def close(self) -> None:
        """Ends the session; the run can go on."""
        self._run.finish()
