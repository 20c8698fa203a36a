"""Results that outlive a process."""

import pytest

from vadapter.planning import cache


def test_what_was_saved_is_loaded(tmp_path):
    name = cache.key(["module", "v5e:2x2"])
    assert cache.load(tmp_path / "new", name) is None
    cache.save(tmp_path / "new", name, {"a": [1, 2.5, "x"]})
    assert cache.load(tmp_path / "new", name) == {"a": [1, 2.5, "x"]}
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"{name}.json"]


def test_every_part_of_the_key_matters():
    keys = [["a", "b"], ["a", "c"], ["ab", ""], ["a", "b", ""], ["b", "a"]]
    assert len({cache.key(parts) for parts in keys}) == len(keys)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\x00"])
def test_a_damaged_file_is_no_result(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    assert cache.load(tmp_path, "x") is None


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache.save(tmp_path / "file", "x", {})
    assert "not kept" in caplog.text


def test_the_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "vadapter" / "plan"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / ".cache" / "vadapter" / "plan"
