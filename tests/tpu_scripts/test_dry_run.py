"""The TPU scripts' dry runs: no gcloud, nothing is started."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.scripts import FOLDER, ROOT, TRAIN, call

pytestmark = pytest.mark.slow

SCRIPTS = ("create", "setup", "launch", "keep", "stop", "logs", "tensorboard", "delete", "xpk")

# What `gcloud COMMAND --help` (528.0.0) and `xpk COMMAND --help` (1.16.0) list of what the scripts might use.
TPUS = ("gcloud", "compute", "tpus")
QUEUED = "--accelerator-type --runtime-version --node-id --node-count --node-prefix --spot --reserved --guaranteed"
SSH = "--zone --worker --ssh-flag --ssh-key-file --strict-host-key-checking --internal-ip"
XPK = "--cluster --project --zone --dry-run"
CAPACITIES = "--tpu-type --num-slices --spot --on-demand --reservation"
DOCUMENTED = {
    (*TPUS, "queued-resources", "create"): f"--zone --async --network --subnetwork --labels --metadata {QUEUED}",
    (*TPUS, "queued-resources", "describe"): "--zone",
    (*TPUS, "queued-resources", "delete"): "--zone --async --force",
    (*TPUS, "tpu-vm", "describe"): "--zone",
    (*TPUS, "tpu-vm", "ssh"): f"--command --output-directory {SSH}",
    (*TPUS, "tpu-vm", "scp"): f"--recurse --compress --scp-flag {SSH}",
    ("gcloud", "storage", "ls"): "",
    ("xpk", "cluster", "create"): f"{XPK} {CAPACITIES}",
    ("xpk", "cluster", "delete"): f"{XPK} --force",
    ("xpk", "workload", "create"): f"{XPK} --workload --tpu-type --num-slices --docker-image --max-restarts "
    "--restart-on-exit-codes --env-file --command",
    ("xpk", "workload", "list"): XPK,
    ("xpk", "workload", "delete"): f"{XPK} --workload --force",
}
GCLOUD_WIDE = {"--project", "--format", "--quiet"}

# Every script with arguments that reach all of its commands.
CALLS = (
    ("create", (), {}),
    ("create", (), {"SLICES": "2", "CAPACITY": "spot"}),
    ("create", (), {"CAPACITY": "reserved"}),
    ("setup", (), {"SLICES": "2", "HOST_ENV": str(FOLDER / "env.example")}),
    ("launch", TRAIN, {"SLICES": "2"}),
    ("keep", ("--delete", *TRAIN), {"SLICES": "2"}),
    ("stop", (), {}),
    ("logs", ("all",), {}),
    ("tensorboard", ("gs://b/runs", "6007"), {}),
    ("delete", (), {}),
    ("xpk", ("cluster",), {"CAPACITY": "spot", "SLICES": "4"}),
    ("xpk", ("cluster",), {"CAPACITY": "reserved", "RESERVATION": "r"}),
    ("xpk", ("--xpk_dry_run", "workload", "w", *TRAIN), {"HOST_ENV": str(FOLDER / "env.example")}),
    ("xpk", ("list",), {}),
    ("xpk", ("stop", "w"), {}),
    ("xpk", ("delete",), {}),
)


def commands(script: str, *argv: str, **settings: str) -> list[list[str]]:
    """The command lines that a dry run prints, split as a shell splits them."""
    done = call(script, "--dry_run", f"--env={FOLDER / 'env.example'}", *argv, **settings)
    assert done.returncode == 0, done.stderr
    return [unquote(line) for line in done.stdout.splitlines()]


def unquote(line: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_every_script_is_covered():
    apart = {"common", "host"}
    assert {p.stem for p in FOLDER.glob("*.sh")} - apart == set(SCRIPTS) == {script for script, _, _ in CALLS}


SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_shellcheck():
    command = [str(SHELLCHECK), "-x", *map(str, sorted(FOLDER.glob("*.sh")))]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_header(script):
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"Usage: tpu_scripts/{script}.sh" in done.stdout
    assert "common.sh" not in done.stdout


DOCUMENT = (ROOT / "docs" / "tpu.md").read_text().replace("\\\n", "")


@pytest.mark.parametrize("line", re.findall(r"^ {4}(tpu_scripts/.*)$", DOCUMENT, re.MULTILINE))
def test_documented_commands_are_taken(line):
    command = re.sub(r"^(\S+)", r"\1 --dry_run", line)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("script", "argv", "settings"), CALLS)
def test_commands_have_documented_flags_only(script, argv, settings):
    seen = 0
    for words in commands(script, *argv, **settings):
        words[0] = Path(words[0]).name
        if words[0] not in ("gcloud", "xpk"):
            continue
        seen += 1
        names = next(key for key in DOCUMENTED if tuple(words[: len(key)]) == key)
        allowed = set(DOCUMENTED[names].split()) | (GCLOUD_WIDE if words[0] == "gcloud" else set())
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= allowed
    assert seen


def test_create_asks_for_a_queued_resource():
    request = commands("create")[0]
    assert request[:6] == [*TPUS, "queued-resources", "create", "slice"]
    assert {"--project=my project", "--accelerator-type=v5litepod-8", "--node-id=slice"} <= set(request)
    assert not {"--spot", "--reserved"} & set(request)
    assert "--spot" in commands("create", CAPACITY="spot")[0]
    assert "--reserved" in commands("create", CAPACITY="reserved")[0]
    several = commands("create", SLICES="3")[0]
    assert {"--node-count=3", "--node-prefix=slice"} <= set(several) and "--node-id=slice" not in several


def test_setup_copies_and_installs_on_all_hosts():
    remote = [line for line in commands("setup", SLICES="2") if "tpu-vm" in line]
    assert all("--worker=all" in line for line in remote)
    assert {line[5] for line in remote if line[4] == "ssh"} == {"slice-0", "slice-1"}
    assert "vadapter[tpu]" in remote[-1][-1] and "--python 3.12" in remote[-1][-1]


def test_the_hosts_variables_travel_as_a_file(tmp_path):
    (tmp_path / "secrets").write_text("HF_TOKEN=hush\n")
    lines = commands("setup", HOST_ENV=str(tmp_path / "secrets"))
    assert any(str(tmp_path / "secrets") in line and "slice:vadapter-dist/host.env" in line for line in lines)
    assert "hush" not in str(lines) and "HF_TOKEN" not in str(lines)


def started(line: list[str]) -> list[str]:
    return shlex.split(line[-1].removeprefix("--command="))[3:]


def test_launch_keeps_the_quoting_of_its_arguments():
    assert started(commands("launch", *TRAIN)[-1]) == [*TRAIN]


def test_launch_tells_slices_of_one_another():
    address, *nodes = commands("launch", "--", "train", SLICES="2")
    assert address[4:6] == ["describe", "slice-0"]
    for number, line in enumerate(nodes):
        assert line[5] == f"slice-{number}"
        assert started(line) == [
            "MEGASCALE_COORDINATOR_ADDRESS=COORDINATOR_ADDRESS",
            "MEGASCALE_NUM_SLICES=2",
            f"MEGASCALE_SLICE_ID={number}",
            "--",
            "train",
        ]


def test_logs_of_a_chosen_host():
    assert "--worker=3" in commands("logs", "3")[0]
    assert commands("logs", "0", "1", SLICES="2")[0][5] == "slice-1"


def test_tensorboard_comes_through_the_connection():
    line = commands("tensorboard", "gs://b/my runs", "6007")[0]
    assert "--ssh-flag=-L 6007:localhost:6007" in line
    assert shlex.split(line[-1])[-2:] == ["--port=6007", "--logdir=gs://b/my runs"]


def test_xpk_starts_the_command_in_the_image():
    line = commands("xpk", "workload", "w", *TRAIN, SLICES="16")[0]
    assert {"--workload=w", "--num-slices=16", "--tpu-type=v5litepod-8", "--docker-image=registry/vadapter"} <= set(
        line
    )
    assert shlex.split(line[-1].removeprefix("--command=")) == ["vadapter", *TRAIN[1:]]
    assert "--reservation=r" in commands("xpk", "cluster", CAPACITY="reserved", RESERVATION="r")[0]


@pytest.mark.skipif(not shutil.which("xpk"), reason="xpk is not installed")
def test_xpk_itself_takes_the_command(tmp_path):
    env = Path(str(shutil.which("xpk"))).parents[1]
    settings = {"XPK_ENV": str(env), "HOME": str(tmp_path), "PROJECT": "my-project", "ZONE": "us-west4-a"}
    done = call("xpk", f"--env={FOLDER / 'env.example'}", "--xpk_dry_run", "workload", "w", *TRAIN, **settings)
    assert "kind: JobSet" in done.stdout, done.stdout + done.stderr
    assert r"vadapter train --gin.MODEL_DIR=\"gs://b/a\ run\"" in done.stdout


@pytest.mark.parametrize(
    ("script", "argv", "settings", "message"),
    [
        ("launch", (), {}, "no command was given"),
        ("keep", ("--", "train"), {}, "gs://"),
        ("keep", ("--", "train", "--gin.MODEL_DIR='/local'"), {}, "gs://"),
        ("logs", ("0", "2"), {"SLICES": "2"}, "Expected 0 to 1"),
        ("tensorboard", (), {}, "no folder was given"),
        ("tensorboard", ("gs://b", "http"), {}, "expected a number"),
        ("create", (), {"SLICES": "0"}, "expected 1 or more"),
        ("create", (), {"CAPACITY": "cheap"}, "spot, on-demand or reserved"),
        ("setup", (), {"HOST_ENV": "/none"}, "/none"),
        ("xpk", ("fly",), {}, "found 'fly'"),
        ("xpk", ("cluster",), {"CAPACITY": "reserved"}, "RESERVATION"),
        ("xpk", ("workload",), {}, "no workload was named"),
    ],
)
def test_a_users_error_is_said(script, argv, settings, message):
    done = call(script, "--dry_run", f"--env={FOLDER / 'env.example'}", *argv, **settings)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_missing_settings_file_is_named(tmp_path):
    done = call("delete", f"--env={tmp_path / 'none'}")
    assert done.returncode == 2
    assert str(tmp_path / "none") in done.stderr and "env.example" in done.stderr
