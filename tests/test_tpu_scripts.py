"""The TPU scripts, by their dry run: no gcloud, nothing is started."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tpu_scripts"
SCRIPTS = ("create", "setup", "launch", "logs", "delete")
SETTINGS = {
    "PROJECT": "my project",
    "ZONE": "zone-1",
    "NAME": "slice",
    "ACCELERATOR": "v5litepod-8",
    "RUNTIME": "v2",
    "SPOT": "0",
    "PYTHON_VERSION": "3.12",
}


def call(script: str, *argv: str, **settings: str) -> subprocess.CompletedProcess:
    command = ["bash", str(FOLDER / f"{script}.sh"), *argv]
    environment = {**os.environ, **SETTINGS, **settings}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def commands(script: str, *argv: str, **settings: str) -> list[list[str]]:
    """The command lines that a dry run prints, split as a shell splits them."""
    done = call(script, "--dry_run", f"--env={FOLDER / 'env.example'}", *argv, **settings)
    assert done.returncode == 0, done.stderr
    return [unquote(line) for line in done.stdout.splitlines()]


def unquote(line: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_header(script):
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"Usage: tpu_scripts/{script}.sh" in done.stdout
    assert "common.sh" not in done.stdout


def test_create_asks_for_a_queued_resource():
    request = commands("create")[0]
    assert request[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"--project=my project", "--accelerator-type=v5litepod-8", "--node-id=slice"} <= set(request)
    assert "--spot" not in request
    assert "--spot" in commands("create", SPOT="1")[0]


def test_setup_copies_and_installs_on_all_hosts():
    lines = commands("setup")
    remote = [line for line in lines if line[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]]
    assert remote and all("--worker=all" in line for line in remote)
    assert "vadapter[tpu]" in remote[-1][-1] and "--python 3.12" in remote[-1][-1]


def test_launch_keeps_the_quoting_of_its_arguments():
    binding = '--gin.MODEL_DIR="gs://b/a run"'
    line = commands("launch", "--", "train", binding)[-1]
    remote = line[-1].removeprefix("--command=")
    assert line[-1] != remote
    started = next(row for row in remote.splitlines() if row.startswith("nohup"))
    assert shlex.split(started)[2:4] == ["train", binding]


def test_launch_needs_a_command():
    done = call("launch", "--dry_run")
    assert done.returncode == 2
    assert "no command was given" in done.stderr


def test_logs_of_a_chosen_host():
    assert "--worker=3" in commands("logs", "3")[0]
    assert "--worker=0" in commands("logs")[0]


def test_a_missing_settings_file_is_named(tmp_path):
    done = call("delete", f"--env={tmp_path / 'none'}")
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr and "env.example" in done.stderr
