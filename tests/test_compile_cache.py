"""Compiled programs on disk: where they are kept, and that no trouble with them stops anything."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vadapter.base import compile_cache


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """Nobody said anything about a cache; what jax was told comes back after the test."""
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def place_of():
    place = compile_cache.folder()
    assert place is not None
    return place.parent


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = compile_cache.start()
    assert place is not None and place.parent == tmp_path / "vadapter" / "compiled" and place.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(place)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place_of() == tmp_path / "home" / ".cache" / "vadapter" / "compiled"
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "mine"))
    assert place_of() == tmp_path / "mine"


def test_it_can_be_turned_off_and_what_jax_was_told_stands(monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.VARIABLE, "off")
    assert compile_cache.start() is None and jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert compile_cache.start() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs") and not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_cache(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "file"))
    assert compile_cache.start() is None and jax.config.jax_compilation_cache_dir is None


def test_the_oldest_programs_go_when_there_are_too_many(monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(compile_cache, "LIMIT", 250)
    place = compile_cache.folder()
    assert place is not None
    place.mkdir()
    for age, name in enumerate(("new", "middle", "old")):
        (place / name).write_bytes(bytes(100))
        os.utime(place / name, (1000 - age, 1000 - age))
    compile_cache.start()
    assert sorted(os.listdir(place)) == ["middle", "new"]


def test_what_one_process_compiled_the_next_one_finds(tmp_path):
    code = """
import logging, jax
from vadapter.base import compile_cache
compile_cache.start()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8)))
print("/jax/compilation_cache/cache_hits" in found)
"""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {compile_cache.VARIABLE: str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    said = [subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True) for _ in "ab"]
    assert [run.stdout.split() for run in said] == [["False"], ["True"]], said
