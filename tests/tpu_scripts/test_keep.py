"""The TPU scripts against a gcloud that plays a scenario; a run that outlives its TPU."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.tpu_scripts.scripts import FOLDER, ROOT, SETTINGS, TRAIN, call_file

pytestmark = pytest.mark.slow

FAKE_GCLOUD = r"""#!/usr/bin/env bash
# Records its arguments; answers with the next line of a scenario's file, the last line again and again.
exec 8<>"$FAKE/turn"
flock 8 # slices are asked at the same time
printf '%s\x1f' "$@" >>"$FAKE/calls"
printf '\x1e' >>"$FAKE/calls"
next() {
  local answer
  answer="$(head -n 1 "$FAKE/$1")"
  if [[ "$(wc -l <"$FAKE/$1")" -gt 1 ]]; then sed -i 1d "$FAKE/$1"; fi
  echo "$answer"
}
case "$*" in
  *queued-resources\ describe*) kind=states ;;
  *queued-resources\ create*) kind=create ;;
  *host.sh\ state*) kind=hosts ;;
  storage\ ls*) kind=steps ;;
  *) kind=others ;;
esac
answer="$(next "$kind")"
case "$answer" in
  ERROR*) echo "$answer" >&2; exit 1 ;;
  NONE) echo 'ERROR: NOT_FOUND: Resource was not found' >&2; exit 1 ;;
  SILENT) echo 'failed with exit status 255' >&2; exit 255 ;;
esac
if [[ "$kind" == hosts ]]; then
  IFS=, read -ra hosts <<<"$answer"
  printf 'vadapter-state: %s\n' "${hosts[@]}"
elif [[ "$kind" == steps ]]; then
  for step in $answer; do echo "gs://b/a run/checkpoint_$step/commit_success.txt"; done
else
  echo "$answer"
fi
"""


class Scenario:
    """A checkout whose gcloud plays given answers, and what it was asked."""

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "tpu_scripts"
        shutil.copytree(FOLDER, self.folder)
        shutil.copy(ROOT / "constraints.txt", root)
        self.settings = {"FAKE": str(root), "PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
        self.program("gcloud", FAKE_GCLOUD)
        self.program("python3", f"#!/usr/bin/env bash\nmkdir -p '{root}/dist/tpu'\n")  # builds the wheel

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def play(self, script: str, *argv: str, settings: dict[str, str] | None = None, **answers: list[str]):
        """Runs a script; `answers` are lines for the states, hosts, steps, create and other commands."""
        for kind in ("states", "hosts", "steps", "create", "others"):
            (self.root / kind).write_text("\n".join(answers.get(kind, ["NONE" if kind == "steps" else ""])) + "\n")
        (self.root / "calls").write_text("")
        env = f"--env={self.folder / 'env.example'}"
        return call_file(self.folder / f"{script}.sh", env, *argv, **self.settings, **(settings or {}))

    def asked(self) -> list[str]:
        """What gcloud was asked for that changes something: create, delete, and start and stop on the hosts."""
        calls = (self.root / "calls").read_text().split("\x1e")
        found = [re.search(r"queued-resources\x1f(create|delete)|host\.sh (start|stop)", line) for line in calls]
        return [match.group(1) or match.group(2) for match in found if match]


@pytest.fixture
def scenario(tmp_path) -> Scenario:
    return Scenario(tmp_path)


BEGIN = ["stop", "start"]  # on the hosts, with the setup between them


def test_create_waits_until_the_tpu_is_there(scenario):
    done = scenario.play("create", states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "slice is ACTIVE"
    assert scenario.play("create", states=["WAITING_FOR_RESOURCES", "FAILED"]).returncode == 2


def test_a_passing_failure_is_tried_again_and_another_is_not(scenario):
    passing = "ERROR: UNAVAILABLE: The service is currently unavailable."
    done = scenario.play("create", "--no_wait", create=[passing, passing, "created"])
    assert done.returncode == 0 and scenario.asked() == ["create"] * 3
    done = scenario.play("create", "--no_wait", create=[passing])
    assert done.returncode == 1 and scenario.asked() == ["create"] * int(SETTINGS["TRIES"])
    done = scenario.play("create", "--no_wait", create=["ERROR: PERMISSION_DENIED: no"])
    assert done.returncode == 1 and scenario.asked() == ["create"] and "PERMISSION_DENIED" in done.stderr


def test_several_slices_are_all_asked_and_one_failure_counts(scenario):
    done = scenario.play("stop", settings={"SLICES": "3"}, others=["", "ERROR: no such node", ""])
    assert done.returncode == 1
    assert scenario.asked() == ["stop"] * 3


def test_nothing_is_installed_where_the_copy_failed(scenario):
    for slices in ("1", "2"):
        done = scenario.play(
            "setup", settings={"SLICES": slices}, others=[*["removed"] * int(slices), "ERROR: no room"]
        )
        assert done.returncode == 1
        assert "uv pip install" not in (scenario.root / "calls").read_text()


def test_a_run_is_brought_to_its_end(scenario):
    done = scenario.play(
        "keep", "--delete", *TRAIN,
        states=["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
        hosts=["none,none", "running,running", "done,running", "done,done"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scenario.asked() == ["create", *BEGIN, "delete"]


def test_a_run_survives_preemption(scenario):
    done = scenario.play(
        "keep", *TRAIN,
        states=["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "DELETING", "NONE", "ACCEPTED", "ACTIVE"],
        hosts=["none", "running", "none", "running", "done"],
        steps=["NONE", "500"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scenario.asked() == [*BEGIN, "delete", "create", *BEGIN]


def test_any_number_of_preemptions_with_progress(scenario):
    rounds = 3 * int(SETTINGS["RESTARTS"])
    done = scenario.play(
        "keep", *TRAIN,
        states=["SUSPENDED", "NONE"] * rounds + ["ACTIVE"],
        hosts=["done"],
        steps=["NONE", *(" ".join(map(str, range(n))) for n in range(2, rounds + 2))],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scenario.asked() == ["delete", "create"] * rounds


def test_fresh_starts_without_progress_are_bounded(scenario):
    done = scenario.play("keep", *TRAIN, states=["FAILED", "NONE"] * 9, steps=["700"])
    assert done.returncode == 2
    assert "no checkpoint after step 700" in done.stderr
    assert scenario.asked() == ["delete", "create"] * int(SETTINGS["RESTARTS"])


def test_a_run_that_ended_on_a_host_is_started_anew_on_all(scenario):
    done = scenario.play(
        "keep", *TRAIN,
        states=["ACTIVE"],
        hosts=["running,running", "running,failed 139", "running,running", "lost,running", "done,done"],
        steps=["NONE", "10", "20"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scenario.asked() == BEGIN * 2


@pytest.mark.parametrize("former", ["none", "failed 2"])
def test_a_users_error_ends_it(scenario, former):
    done = scenario.play("keep", *TRAIN, states=["ACTIVE"], hosts=[former, "running,failed 2"])
    assert done.returncode == 2
    assert "user's error" in done.stderr
    assert scenario.asked() == [*BEGIN, "stop"]


@pytest.mark.parametrize("status", ["3", "130"])
def test_a_final_status_ends_it_as_on_the_hosts(scenario, status):
    done = scenario.play("keep", *TRAIN, states=["ACTIVE"], hosts=["none", f"running,failed {status}"])
    assert done.returncode == 2 and f"failed {status}" in done.stderr
    assert scenario.asked() == [*BEGIN, "stop"]


def test_another_run_is_left_alone(scenario):
    done = scenario.play("keep", *TRAIN, states=["ACTIVE"], hosts=["other"])
    assert done.returncode == 2
    assert "another command" in done.stderr
    assert scenario.asked() == []


def test_a_replaced_slice_is_started_with_the_others(scenario):
    done = scenario.play(
        "keep", *TRAIN,
        settings={"SLICES": "2"},
        others=["10.0.0.2"],
        states=["ACTIVE"],
        hosts=["none", "none", "running", "running", "failed 2", "none", "running", "running", "done"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(scenario.asked()) == sorted(BEGIN * 2 * 2)


def test_hosts_that_stay_silent_are_replaced(scenario):
    done = scenario.play(
        "keep", *TRAIN,
        settings={"TRIES": "1"},
        states=["ACTIVE", "ACTIVE", "DELETING", "NONE", "ACTIVE"],
        hosts=["running", "SILENT", "none", "done"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert scenario.asked() == ["delete", "create", *BEGIN]


# A cloud of one host, which is the folder $FAKE/host: commands over ssh run there. When the request is SUSPENDED, the
# host is lost as soon as its command has saved something.
ONE_HOST = r"""#!/usr/bin/env bash
export HOME="$FAKE/host"
case "$*" in
  *queued-resources\ describe*)
    state="$(head -n 1 "$FAKE/states")"
    if [[ "$(wc -l <"$FAKE/states")" -gt 1 ]]; then sed -i 1d "$FAKE/states"; fi
    if [[ "$state" == SUSPENDED ]]; then
      read -r _ <"$FAKE/saved"
      kill -KILL -- "-$(cat "$HOME/.vadapter-run/pid")"
      rm -rf "$HOME/.vadapter-run" "$HOME/vadapter-dist"
    elif [[ "$state" == NONE ]]; then
      echo 'ERROR: NOT_FOUND' >&2
      exit 1
    fi
    echo "$state"
    ;;
  storage\ ls*) echo "gs://b/a run/checkpoint_$(cat "$FAKE/step")/commit_success.txt" ;;
  *tpu-vm\ scp*) cp -r "$6" "$HOME/${7#slice:}" ;;
  *tpu-vm\ ssh*) cd "$HOME" && exec bash -c "$(printf %s "${*: -1:1}" | sed 1s/^--command=//)" ;;
esac
"""
TRAINS = r"""#!/usr/bin/env bash
if [[ "$1" == --version ]]; then exit; fi
step="$(cat "$FAKE/step")"
echo "$* from $step" >>"$FAKE/starts"
if [[ "$step" == 0 ]]; then
  echo 500 >"$FAKE/step"
  echo >"$FAKE/saved"
  read -r _ <"$FAKE/never"
fi
"""


def test_a_preempted_run_goes_on_from_its_checkpoint(scenario):
    scenario.program("gcloud", ONE_HOST)
    wheel = '[[ "$2" != pip || "$3" != wheel ]] || { mkdir -p "$7" && touch "$7/vadapter-1.whl"; }'
    scenario.program("python3", f"#!/usr/bin/env bash\n{wheel}\n")
    scenario.program("vadapter", TRAINS)
    installed = scenario.root / "host" / "vadapter-env" / "bin"
    installed.mkdir(parents=True)
    (scenario.root / "bin" / "vadapter").rename(installed / "vadapter")
    (scenario.root / "step").write_text("0\n")
    for gate in ("saved", "never"):
        os.mkfifo(scenario.root / gate)
    done = scenario.play("keep", *TRAIN, states=["NONE", "ACTIVE", "ACTIVE", "SUSPENDED", "NONE", "ACTIVE"])
    assert done.returncode == 0, done.stdout + done.stderr
    command = " ".join(TRAIN[1:])
    first, *others = (scenario.root / "starts").read_text().splitlines()
    assert first == f"{command} from 0"
    # The host may restart a killed command before its loss is seen: then there are two.
    assert set(others) == {f"{command} from 500"}
