"""Start-up of many processes, up to where jax takes over: who they are and whether all of them come."""

import contextlib
import socket
import threading

import jax
import pytest

from vadapter.base.errors import UserError
from vadapter.partitioning import hosts, rendezvous
from vadapter.partitioning.hosts import HostsConfig
from vadapter.partitioning.rendezvous import Member


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """What jax was started with, instead of starting it. The environment is that of a machine by itself."""
    for variable in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append(args))
    return calls


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def meet(*members, timeout=1.0):
    """All members at once; returns the error of each, or None."""
    errors = [None] * len(members)

    def run(i):
        try:
            rendezvous.meet(members[i], timeout)
        except UserError as error:
            errors[i] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return errors


def test_a_machine_by_itself_is_one_process(started, monkeypatch):
    hosts.start()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    hosts.start()
    assert started == []


def test_slurm_tells_who_the_processes_are(started, monkeypatch):
    variables = {"JOB_ID": "5", "STEP_NODELIST": "node[3-4]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    met = []
    monkeypatch.setattr(rendezvous, "meet", lambda member, timeout: met.append(member))
    hosts.start()
    assert [str(m) for m in met] == ["process 1 of 2"]
    assert met[0].coordinator_address.startswith("node3:")
    assert started == [(met[0].coordinator_address, 2, 1)]


def test_gin_and_the_environment_may_complete_one_another(started, monkeypatch):
    monkeypatch.setattr(rendezvous, "meet", lambda member, timeout: None)
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    hosts.start(HostsConfig("10.0.0.2:8476", 2))
    assert started == [("10.0.0.2:8476", 2, 1)]


@pytest.mark.parametrize(
    ("config", "environment", "words"),
    [
        (
            HostsConfig(num_processes=4),
            {"JAX_NUM_PROCESSES": "2"},
            "HostsConfig.num_processes is 4 and JAX_NUM_PROC.* 2",
        ),
        (HostsConfig("a:1"), {"JAX_COORDINATOR_ADDRESS": "b:1"}, "'a:1' and JAX_COORDINATOR_ADDRESS is 'b:1'"),
        (HostsConfig(num_processes=2, process_id=2), {}, "num_processes is 2 and process_id is 2"),
        (HostsConfig(), {"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID is 'first'; expected a whole number"),
        (HostsConfig("10.0.0.2", 2, 0), {}, "expected HOST:PORT"),
        (HostsConfig("10.0.0.2:8476", 2), {}, "without process_id .*JAX_PROCESS_ID"),
        (HostsConfig(process_id=0), {}, "without coordinator_address .*num_processes"),
    ],
)
def test_settings_that_contradict_or_are_incomplete(started, monkeypatch, config, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        hosts.start(config)
    assert started == []


def test_all_come(address):
    assert meet(*(Member(i, 3, address) for i in (1, 2, 0)), timeout=20) == [None] * 3


def test_a_host_that_never_comes_is_named_on_all_others(address):
    names = ("tpu-w0", "tpu-w1", "tpu-w2")
    here, there = meet(Member(0, 3, address, names), Member(2, 3, address))
    assert here == there
    assert f"did not join the coordinator {address} within 1 s: 1 (tpu-w1)" in here
    assert f"0 on {socket.gethostname()}, 2 on" in here


def test_a_coordinator_that_never_comes_is_named(address, started):
    with pytest.raises(UserError, match=f"Process 0 did not answer at {address} within 1 s .* process 1 of 2"):
        hosts.start(HostsConfig(address, 2, 1, initialization_timeout=1))
    assert started == []


def test_two_with_the_same_number(address):
    errors = meet(Member(0, 3, address), Member(1, 3, address), Member(1, 3, address), timeout=5)
    assert "are process 1. Give each process its own number" in errors[0]


def test_processes_that_disagree_on_their_number(address):
    errors = meet(Member(0, 2, address), Member(1, 3, address), timeout=5)
    assert errors[0] == errors[1]
    assert "is process 1 of 3, but process 0" in errors[0]


def test_a_port_that_is_taken(address):
    port = rendezvous.split_address(address)[1]
    with rendezvous._listen(port), pytest.raises(UserError, match=f"cannot listen on the coordinator's port {port}"):
        rendezvous.meet(Member(0, 2, address), 1)


def test_what_is_no_process_of_ours_is_ignored(address):
    host, port = rendezvous.split_address(address)
    waiting = threading.Thread(target=meet, args=(Member(0, 2, address),), kwargs={"timeout": 20.0})
    waiting.start()
    for _ in range(100_000):  # until it listens
        with contextlib.suppress(OSError), socket.create_connection((host, port)) as probe:
            probe.sendall(b"GET / HTTP/1.1\r\n")
            break
    assert meet(Member(1, 2, address), timeout=20) == [None]
    waiting.join(30)
    assert not waiting.is_alive()
