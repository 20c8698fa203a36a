"""`vadapter serve`: a process that begins, answers and ends as it is told."""

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.tiny_bundle import write_bundle
from vadapter.cli.main import main

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("prometheus_client", reason="needs the extra serve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve")
    write_bundle(path)
    return path


def serve(folder, *arguments):
    return main(["serve", f"--bundle={folder / 'bundle'}", *arguments])


@pytest.fixture
def taken():
    """A port that another program has."""
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port=99999"], "--port"),
        (["--host=no.such.host.invalid"], "--host"),
        (["--rows=0"], "--rows is 0"),
        (["--max_seconds=nan"], "--max_seconds is nan"),
        (["--num_draft_tokens=3"], "does nothing without --draft"),
        (["--draft=prompt_lookup", "--num_draft_tokens=0"], "num_draft_tokens is 0"),
        (["--draft=words"], "words"),
        (["--allow_media_host=https://example.com"], "without http://"),
        (["--bundle", "/nowhere/bundle"], "Two bundles have the name bundle"),
        (["--bundle", "hf:owner/bundle@refs/pr/1"], "Two bundles have the name bundle"),
        (["--bundle", "other=/nowhere"], "/nowhere is not there"),
        (["--bundle", "a="], "NAME=DIR"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is(folder, capsys, arguments, said):
    assert serve(folder, "--port=0", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken(folder, capsys, taken):
    assert serve(folder, f"--port={taken}") == 2
    assert f"The port {taken} of 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", " ", "a\nb", "clé"])
def test_a_key_that_is_none_is_not_taken_for_no_key(folder, capsys, monkeypatch, key):
    monkeypatch.setenv("VADAPTER_API_KEY", key)
    assert serve(folder, "--port=0") == 2
    assert "VADAPTER_API_KEY is set" in capsys.readouterr().err


def test_what_is_not_installed_is_named(folder, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else found(name, *rest)
    )
    assert serve(folder) == 2
    assert "pip install 'vadapter[serve]'" in capsys.readouterr().err


@contextlib.contextmanager
def process(*arguments, **environment):
    """Yields a server's process and its port."""
    command = [sys.executable, "-m", "vadapter", "serve", "--port=0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("vadapter serves "), running.communicate()[1]
        yield running, int(line.rpartition(":")[2].partition("/")[0]), line
    finally:
        running.kill()
        running.communicate()


def ask(port, **fields):
    """Asks for a completion. Returns the connection, on which the answer is to come."""
    body = {"model": "a", "messages": [{"role": "user", "content": "red ?"}], "max_tokens": 3000, **fields}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


@pytest.mark.slow
def test_told_to_stop_it_finishes_what_it_has_and_takes_nobody_in(folder):
    with process("--bundle", f"a={folder / 'bundle'}", "--rows=1", "--max_new_tokens=3000") as (running, port, line):
        assert line == f"vadapter serves a at http://127.0.0.1:{port}/v1\n"
        answer = ask(port, stream=True).getresponse()
        assert answer.readline().startswith(b"data: ")
        waits, idle = ask(port, max_tokens=3), http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        idle.request("GET", "/metrics")
        assert b'requests_waiting{model="a"}' in idle.getresponse().read()
        running.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert json.loads(waits.getresponse().read())["usage"]["completion_tokens"] == 3
        assert running.wait(timeout=120) == 0
        assert "Traceback" not in running.communicate()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.slow
def test_told_to_stop_twice_it_is_gone_with_a_sentence(folder):
    with process("--bundle", f"a={folder / 'bundle'}", "--max_new_tokens=3000") as (running, port, _):
        answer = ask(port, stream=True).getresponse()
        assert answer.readline().startswith(b"data: ")
        running.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionRefusedError):  # it has heard the first
            while True:
                socket.create_connection(("127.0.0.1", port)).close()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=120) == 130
        assert running.communicate()[1] == "vadapter: stopped at once; answers under way are lost.\n"
