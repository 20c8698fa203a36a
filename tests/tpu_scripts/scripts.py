"""Calls the TPU scripts, with the settings of the tests."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tpu_scripts"
SETTINGS = {
    "PROJECT": "my project",
    "ZONE": "zone-1",
    "NAME": "slice",
    "ACCELERATOR": "v5litepod-8",
    "SLICES": "1",
    "RUNTIME": "v2",
    "CAPACITY": "on-demand",
    "PYTHON_VERSION": "3.12",
    "HOST_ENV": "",
    "WAIT": "0",
    "PAUSE": "0",
    "TRIES": "3",
    "RESTARTS": "2",
    "CLUSTER": "big",
    "RESERVATION": "",
    "IMAGE": "registry/vadapter",
    "XPK_ENV": "/opt/xpk",
}
TRAIN = ("--", "train", '--gin.MODEL_DIR="gs://b/a run"')


def call(script: str, *argv: str, **settings: str) -> subprocess.CompletedProcess:
    return call_file(FOLDER / f"{script}.sh", *argv, **settings)


def call_file(path: Path, *argv: str, **settings: str) -> subprocess.CompletedProcess:
    command = ["bash", str(path), *argv]
    environment = {**os.environ, **SETTINGS, **settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
