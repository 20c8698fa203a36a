"""What a user sees of an error that is no bug: one paragraph and an exit status that scripts can rely on."""

import errno
import logging
import os
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

import vadapter
from vadapter.base import exit_codes
from vadapter.base.errors import UserError
from vadapter.cli import main
from vadapter.partitioning.rendezvous import NotAllThereError


@pytest.fixture
def command(monkeypatch):
    """Runs a subcommand that does what the given function does."""

    def call(run) -> int:
        module = types.ModuleType("go_command", "Goes.")
        module.add_arguments = lambda parser: None
        module.run = run
        monkeypatch.setitem(sys.modules, "go_command", module)
        monkeypatch.setattr(main, "COMMANDS", (main.Command("go", "goes", "go_command"),))
        return main.main(["go"])

    return call


class JaxRuntimeError(RuntimeError):
    """Named as jax's."""


def caused(error, cause):
    error.__cause__ = cause
    return error


def google(name):
    return type(name, (Exception,), {"__module__": "google.api_core.exceptions"})


CASES = [
    (UserError("Too few."), exit_codes.USER, "Too few."),
    (NotAllThereError("One did not come."), exit_codes.STOPPED, "One did not come."),
    (MemoryError("Unable to allocate 9 TiB"), exit_codes.USER, "Unable to allocate 9 TiB.*BATCH_SIZE"),
    (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes"), exit_codes.USER, "device"),
    (JaxRuntimeError("UNAVAILABLE: coordination service"), exit_codes.PASSING, "Another process of this run"),
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), exit_codes.PASSING, "Another process of"),
    (RuntimeError("UNKNOWN: Gloo AllReduce failed: Read error"), exit_codes.PASSING, "Another process of this run"),
    (RuntimeError("Unable to initialize backend 'cuda': none"), exit_codes.USER, "JAX_PLATFORMS"),
    (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), exit_codes.USER, r"no space is left.*\(/runs/a\)"),
    (PermissionError(errno.EACCES, "Permission denied", "/runs/a"), exit_codes.USER, "/runs/a cannot be used: Perm"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/runs/a"), exit_codes.USER, "/runs/a cannot be used"),
    (FileNotFoundError(errno.ENOENT, "No such file", b"/a"), exit_codes.USER, "cannot be used: No such file"),
    (
        caused(
            TimeoutError("Timed out while waiting for async_write_complete barrier."),
            JaxRuntimeError("INTERNAL: Barrier failed because: UNAVAILABLE: Task 1 heartbeat timeout."),
        ),
        exit_codes.PASSING,
        "Another process of this run.*Task 1 heartbeat",
    ),
    (ConnectionResetError(errno.ECONNRESET, "reset by peer"), exit_codes.PASSING, "network.*ConnectionResetError"),
    (TimeoutError("timed out"), exit_codes.PASSING, "TimeoutError: timed out"),
    (socket.gaierror(-3, "Temporary failure in name resolution"), exit_codes.PASSING, "name resolution"),
    (google("ServiceUnavailable")("503 busy"), exit_codes.PASSING, "ServiceUnavailable: 503 busy"),
]


@pytest.mark.parametrize(("error", "status", "said"), CASES, ids=lambda x: type(x).__name__)
def test_an_error_that_is_no_bug_is_one_paragraph(command, capsys, error, status, said):
    def run(args):
        raise error

    assert command(run) == status
    found = capsys.readouterr().err
    assert found.startswith("vadapter: error: ") and found.count("\n") == 1 and "Traceback" not in found
    assert re.search(said, found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        ValueError("Gloo is no backend"),
        KeyError("missing"),
        RuntimeError("RESOURCE_EXHAUSTED of something else"),
        OSError("without a number"),
        FileNotFoundError(errno.ENOENT, "No such file", str(Path(vadapter.__file__).parent / "lost.j2")),
    ],
)
def test_a_bug_stays_a_bug(command, error):
    def run(args):
        raise error

    with pytest.raises(type(error)):
        command(run)


def test_an_interrupt_is_told_in_a_line(command, capsys):
    def run(args):
        raise KeyboardInterrupt

    assert command(run) == exit_codes.INTERRUPTED
    assert capsys.readouterr().err == "vadapter: interrupted\n"


def test_whoever_stops_reading_sees_no_error():
    code = (
        "import sys, types\nfrom vadapter.cli import main\nmodule = types.ModuleType('go')\n"
        "module.add_arguments = lambda parser: None\n"
        "module.run = lambda args: [print('line ' * 100) for _ in range(1000)] and 0\n"
        "sys.modules['go'] = module\nmain.COMMANDS = (main.Command('go', 'goes', 'go'),)\nsys.exit(main.main(['go']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == exit_codes.PIPE


def test_the_table_of_the_documents_is_that_of_the_code():
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    codes = {name: value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    table = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert table == set(codes.values())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "There is no command trian. Did you mean train?"),
        (["train", "--learning_rate=1e-3"], "--gin.OptimizerConfig.learning_rate=1e-3"),
        (["train", "--model_dir=runs/a"], """--gin.MODEL_DIR='"runs/a"'"""),
        (["train", "--batch-size=8"], "--gin.BATCH_SIZE=8"),
        (["train", "--gin_files=a.gin"], "Did you mean --gin_file?"),
        (["infer", "--bundle=a", "--media=b", "--top_pp=1"], "Did you mean --top_p?"),
        (["train", "runs/a"], "vadapter train does not know runs/a."),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_was_meant_is_named(argv, said, capsys):
    assert main.main(argv) == exit_codes.USER
    assert said in capsys.readouterr().err


def test_a_message_has_no_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    name = "a\x1b[2J\udcff\x9b\tb"
    assert main.main(["infer", "--bundle=b", f"--media={name}"]) == exit_codes.USER
    logging.warning("left out %s: %s", name, ValueError("of\ntwo lines"))
    error, logged = capsys.readouterr().err.splitlines()
    assert r"a\x1b[2J\udcff\x9b" in error
    assert logged == "WARNING:root:left out a\\x1b[2J\\udcff\\x9b\tb: of\\ntwo lines"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_of_any_bytes_is_one_line_of_the_output(tmp_path, encoding):
    """Found as: "Wrote" of a name that is no UTF-8 was a traceback after all was written, and a newline split it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "curve.jsonl").write_text('{"step": 1, "split": "val", "loss": 1.0}\n')
    page = os.fsencode(tmp_path) + b"/a\xff\n\xc3\xa9\x1b.html"
    done = subprocess.run(
        [sys.executable, "-m", "vadapter", "report", os.fsencode(run), b"--output=" + page],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(vadapter.__file__).parents[1])},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == exit_codes.DONE and os.path.isfile(page), done.stderr
    shown = "é".encode(encoding, "backslashreplace")
    assert done.stdout == b"Wrote " + os.fsencode(tmp_path) + rb"/a\udcff\n" + shown + rb"\x1b.html." + b"\n"


def test_a_package_s_notes_are_held_back_and_its_warnings_are_not(tmp_path):
    notes = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795729302.155121   13388 cudart_stub.cc:31] Could not find cuda drivers on your machine.",
    ]
    kept = ["W0000 00:00:1795729302.155121   13388 a.cc:31] careful", "Traceback of something"]
    lines = "".join(f"os.write(2, {line + chr(10)!r}.encode())\n" for line in [*notes, *kept])
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "__init__.py").write_text(f"import os\n{lines}from noisy import inner\n")
    (tmp_path / "noisy" / "inner.py").write_text("value = 3\n")
    code = (
        "from vadapter.base import quiet; quiet.import_quietly('noisy')\n"
        "import noisy, sys; print(noisy.inner.value); print('after', file=sys.stderr)"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(vadapter.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout == "3\n"
    assert done.stderr.splitlines() == [*kept, "after"]
