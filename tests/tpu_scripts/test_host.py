"""What keeps a command running on a TPU host, with a `vadapter` that does what a test says."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tpu_scripts.scripts import FOLDER
from vadapter.base import exit_codes

pytestmark = pytest.mark.slow


class Host:
    """A home folder with an installed `vadapter` that does what a test says."""

    def __init__(self, home: Path, vadapter: str):
        self.home = home
        program = home / "vadapter-env" / "bin" / "vadapter"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/usr/bin/env bash\ncd "$HOME"\necho "$@" >>calls\n{vadapter}\n')
        program.chmod(0o755)
        (home / "vadapter-dist").mkdir()
        shutil.copy(FOLDER / "host.sh", home / "vadapter-dist")

    def do(self, *argv: str, **more: str) -> subprocess.CompletedProcess:
        command = ["bash", str(self.home / "vadapter-dist" / "host.sh"), *argv]
        environment = {**os.environ, "HOME": str(self.home), "HOST_PAUSE": "0", "HOST_RESTARTS": "2", **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def state(self, *command: str) -> str:
        return self.do("state", "--", *command).stdout.removeprefix("vadapter-state: ").strip()

    def wait(self) -> None:
        """Until what was started has ended."""
        subprocess.run(["flock", str(self.home / ".vadapter-run" / "lock"), "true"], timeout=60, check=True)

    def calls(self) -> list[str]:
        return (self.home / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("vadapter", "calls", "state"),
    [
        ("exit 0", 1, "done"),
        ("exit 2", 1, "failed 2"),
        ('[[ "$(wc -l <calls)" == 2 ]] || exit 1', 2, "done"),
        ("kill -SEGV $$", 3, "failed 139"),
        ("exit 143", 3, "failed 143"),
        ("exit 75", 3, "failed 75"),
        ("exit 3", 1, "failed 3"),
        ("exit 130", 1, "failed 130"),
    ],
)
def test_a_command_is_started_again_after_a_crash_only(tmp_path, vadapter, calls, state):
    host = Host(tmp_path, vadapter)
    assert host.state("train", "a  b") == "none"
    host.do("start", "--", "train", "a  b")
    host.wait()
    assert host.state("train", "a  b") == state
    assert host.state("train", "a", "b") == "none"
    assert host.calls() == ["train a  b"] * calls


@pytest.mark.parametrize("status", [143, 1, 139])
def test_only_starts_without_a_newer_checkpoint_count(tmp_path, status):
    save = '[[ "$n" -gt 6 ]] || { mkdir -p "$step"; touch "$step/_CHECKPOINT_METADATA"; }'
    host = Host(tmp_path, f'n="$(wc -l <calls)"; step=run/checkpoint_$n\n{save}\nexit {status}')
    command = ("train", f'--gin.MODEL_DIR="{tmp_path}/run"')
    host.do("start", "--", *command)
    host.wait()
    assert host.state(*command) == f"failed {status}"
    assert len(host.calls()) == 6 + 2  # six with progress, and HOST_RESTARTS after the last of them


def test_a_checkpoint_in_a_bucket_counts_as_progress(tmp_path):
    host = Host(tmp_path, "exit 1")
    cloud = tmp_path / "bin" / "gcloud"
    cloud.parent.mkdir()
    cloud.write_text(
        f'#!/usr/bin/env bash\nn="$(cat {tmp_path}/calls 2>/dev/null | wc -l)"\n'
        '[[ "$n" -gt 3 ]] && n=3\necho "gs://b/run/checkpoint_$n/commit_success.txt"\n'
    )
    cloud.chmod(0o755)
    command = ("train", "--gin.MODEL_DIR='gs://b/run'")
    host.do(
        "start",
        f"PATH={cloud.parent}:{os.environ['PATH']}",
        "--",
        *command,
        PATH=f"{cloud.parent}:{os.environ['PATH']}",
    )
    host.wait()
    assert len(host.calls()) == 3 + 2


def test_the_scripts_have_the_final_statuses_of_the_commands():
    final = {str(code) for code in exit_codes.FINAL if code}
    host, keep = ((FOLDER / name).read_text() for name in ("host.sh", "keep.sh"))
    assert set(re.search(r'^FINAL="(.*)"', host, re.MULTILINE)[1].split()) == final
    assert set(re.findall(r"nfailed (\d+)", keep)) == final


def test_a_host_passes_variables_and_its_own_file_on(tmp_path):
    host = Host(tmp_path, 'echo "$MEGASCALE_SLICE_ID $HF_TOKEN"')
    (tmp_path / "vadapter-dist" / "host.env").write_text("HF_TOKEN=hush\n")
    host.do("start", "MEGASCALE_SLICE_ID=1", "--", "train")
    host.wait()
    assert "1 hush\n" in (tmp_path / "vadapter.log").read_text()


def test_one_command_a_host(tmp_path):
    host = Host(tmp_path, "read -r line <gate")
    os.mkfifo(tmp_path / "gate")
    host.do("start", "--", "train")
    assert host.state("train") == "running" and host.state("eval") == "other"
    assert host.do("start", "--", "train").returncode == 0
    other = host.do("start", "--", "eval")
    assert other.returncode == 2 and "another command is running" in other.stderr
    (tmp_path / "gate").write_text("go\n")
    host.wait()
    assert host.state("train") == "done" and host.calls() == ["train"]


def test_a_command_is_told_to_stop_and_may_save(tmp_path):
    host = Host(
        tmp_path,
        "trap 'echo saved >>calls; exit 0' TERM\nread -r line <ready\nwhile true; do read -r -t 9 <>gate; done",
    )
    os.mkfifo(tmp_path / "ready")
    os.mkfifo(tmp_path / "gate")
    host.do("start", "--", "train")
    (tmp_path / "ready").write_text("go\n")
    host.do("stop")
    assert host.state("train") == "stopped" and host.calls() == ["train", "saved"]
    assert host.do("stop").returncode == 0


def test_a_host_that_was_started_anew_says_so(tmp_path):
    host = Host(tmp_path, "exit 0")
    host.do("start", "--", "train")
    host.wait()
    (tmp_path / ".vadapter-run" / "state").write_text("running\n")
    assert host.state("train") == "lost"
