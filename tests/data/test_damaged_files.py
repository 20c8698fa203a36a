"""Files of many records that are damaged, incomplete, hostile or something else."""

import logging
import tarfile

import pytest

from tests.data.pair_files import add, caption, loader, png, read, register, rows, write
from vadapter.base.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar_with(path, *extra, good=2):
    """A tar file of `good` samples with members (name, data, changes) in between."""
    with tarfile.open(path, "w") as archive:
        for i in range(good):
            add(archive, f"{i}.png", png(i))
            add(archive, f"{i}.txt", caption(i).encode())
            for name, data, changes in extra if i == 0 else ():
                add(archive, name, data, **changes)
    return str(path)


TRAPS = {
    "absolute": ("/etc/evil.png", png(9), {}),
    "parent": ("../evil.png", png(9), {}),
    "parent inside": ("a/../../evil.png", png(9), {}),
    "backslash": ("..\\evil.png", png(9), {}),
    "drive": ("C:/evil.png", png(9), {}),
    "symbolic link": ("evil.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    "hard link": ("evil.png", b"", {"type": tarfile.LNKTYPE, "linkname": "../x"}),
    "device": ("evil.png", b"", {"type": tarfile.CHRTYPE}),
    "pipe": ("evil.png", b"", {"type": tarfile.FIFOTYPE}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_tar_members_that_point_elsewhere_are_refused_by_name_and_counted(tmp_path, trap, caplog):
    name, data, changes = TRAPS[trap]
    text = (name.replace(".png", ".txt"), b"evil", {})
    file = tar_with(tmp_path / "a.tar", (name, data, changes), text)
    assert read(file, max_bad_share=0.5) == [caption(0), caption(1)]
    assert loader().counters()["left_out"] == 1
    assert "evil.png' points outside" in caplog.text or "evil.png' is a link or no ordinary file" in caplog.text
    with pytest.raises(UserError, match="found 1 of 3"):
        register(file)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.png", png(1), {})], "x: no .json or .txt with a caption"),
        ([("x.txt", b"words", {})], "x: no image among .txt"),
        ([("x.cls", b"3", {}), ("x.txt", b"words", {})], "x: no image among .cls, .txt"),
        ([("x.mp4", b"", {}), ("x.txt", b"words", {})], "x: no image among .mp4, .txt"),
    ],
)
def test_incomplete_samples_are_left_out_by_name(tmp_path, members, reason, caplog):
    assert read(tar_with(tmp_path / "a.tar", *members), max_bad_share=0.5) == [caption(0), caption(1)]
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.png", png(1), {}), ("x.txt", b" \n", {})], "a.tar:x: has no caption"),
        ([("x.png", b"", {}), ("x.txt", b"words", {})], "a.tar:x: has no image or video"),
        ([("x.png", b"<html>404", {}), ("x.txt", b"words", {})], "a.tar:x: not a readable image"),
        ([("x.png", png(1), {}), ("x.json", b"[1]", {})], "a.tar:x: has a .json that is not a JSON object"),
        ([("x.png", png(1), {}), ("x.json", b"{", {})], "a.tar:x: has a .json that is not a JSON object"),
        ([("x.png", png(1), {}), ("x.json", b'{"text": 1}', {})], "a.tar:x: has no caption"),
    ],
)
def test_samples_that_turn_out_bad_are_skipped_by_name_and_counted(tmp_path, members, reason, caplog):
    register(tar_with(tmp_path / "a.tar", *members))
    made = loader(split="train")
    valid = [row["valid"] for _, part in made.eval_batches() for row in part]
    assert valid == [True, False, True, False]
    assert made.counters()["skipped"] == 1 and f"skipped {reason}" in caplog.text


def test_a_bad_sample_is_named_once_a_process(tmp_path, caplog):
    register(tar_with(tmp_path / "once.tar", ("x.png", b"no picture", {}), ("x.txt", b"words", {})))
    made = loader(split="train")
    for reader in (made, made, loader(split="train")):  # two passes, and another evaluator's
        assert not all(row["valid"] for _, part in reader.eval_batches() for row in part)
    assert made.counters()["skipped"] == 2
    assert caplog.text.count("skipped once.tar:x: not a readable image") == 1


@pytest.mark.parametrize(
    ("format_", "cut"),
    [*(("tar", cut) for cut in (512, 700, 1100, 2000, 2048, 9000)), *(("tfrecord", cut) for cut in (1, 5, 200, 700))],
)
def test_of_a_truncated_file_what_is_whole_is_kept(tmp_path, format_, cut, caplog):
    write(tmp_path, format_, 10, 1)
    path = tmp_path / f"web-000.{format_}"
    data = path.read_bytes()
    end = 10 * 2048 if format_ == "tar" else len(data)  # without the padding of a tar file
    path.write_bytes(data[: end - cut])
    found = read(str(path), max_bad_share=0.5)
    assert found == [caption(i) for i in range(len(found))] and len(found) < 10
    assert "truncated" in caplog.text and loader().counters()["left_out"] >= 1


def test_damage_in_the_middle_of_a_tar_file_is_said(tmp_path, caplog):
    write(tmp_path, "tar", 10, 1)
    path = tmp_path / "web-000.tar"
    data = bytearray(path.read_bytes())
    data[4 * 2048 : 4 * 2048 + 512] = b"\xff" * 512
    path.write_bytes(data)
    assert read(str(path), max_bad_share=0.5) == [caption(i) for i in range(4)]
    assert "damaged or truncated after 8192" in caplog.text


@pytest.mark.parametrize("format_", ["tar", "tfrecord", "parquet", "array_record", "jsonl"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b" + bytes(600)])
def test_files_that_are_something_else_are_user_errors(tmp_path, format_, data):
    path = tmp_path / f"a.{format_}"
    path.write_bytes(data)
    with pytest.raises(UserError, match="Expected"):
        register(str(path))


def test_other_files_and_folders_in_a_tar_are_passed_over(tmp_path, caplog):
    extra = [("d", b"", {"type": tarfile.DIRTYPE}), ("d/._0.png", b"x", {})]
    with caplog.at_level(logging.WARNING):
        assert read(tar_with(tmp_path / "a.tar", *extra)) == [caption(0), caption(1)]
    assert "left out" not in caplog.text


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(tmp_path, format_):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format_) as archive:
        for i, name in enumerate(("x" * 90 + "/" + "y" * 150, "größe/雪", "a.b.c")):
            add(archive, f"{name}.png", png(i))
            add(archive, f"{name}.txt", caption(i).encode())
    assert read(str(path)) == [caption(i) for i in range(3)]
    assert rows()[1]["id"] == "a.tar:größe/雪"


def test_a_record_that_vanishes_is_skipped(tmp_path, caplog):
    """A file is cut after its index was made."""
    files = write(tmp_path, "tar", 4, 2)
    register(files)
    path = tmp_path / "web-001.tar"
    path.write_bytes(path.read_bytes()[:100])
    assert [row["valid"] for row in rows()] == [True, True, False, False]
    assert "cannot be read" in caplog.text


TWICE = {
    "names with dots": ["22.05.png", "22.05.txt", "22.15.png", "22.15.txt"],
    "a key twice": ["cat.png", "cat.txt", "cat.png", "cat.txt"],
    "two pictures": ["cat.a.png", "cat.b.png", "cat.txt"],
    "two texts": ["cat.png", "cat.a.txt", "cat.b.txt"],
    "capital letters": ["cat.png", "cat.PNG", "cat.txt"],
}


@pytest.mark.parametrize("names", TWICE.values(), ids=TWICE)
def test_a_picture_is_never_joined_with_the_text_of_another(tmp_path, names, caplog):
    members = [(name, png(9) if name.lower().endswith("png") else b"another", {}) for name in names]
    assert read(tar_with(tmp_path / "a.tar", *members), max_bad_share=0.5) == [caption(0), caption(1)]
    assert loader().counters()["left_out"] == 1
    assert "2 members end in ." in caplog.text and "one name up to its first dot" in caplog.text
    with pytest.raises(UserError, match="found 1 of 3"):
        register(str(tmp_path / "a.tar"))


def test_other_members_may_have_one_ending(tmp_path):
    members = [("x.png", png(1), {}), ("x.a.npy", b"1", {}), ("x.b.npy", b"2", {}), ("x.txt", b"words", {})]
    assert read(tar_with(tmp_path / "a.tar", *members)) == [caption(0), "words", caption(1)]


def test_a_tfrecord_with_a_changed_byte_is_a_bad_record(tmp_path, caplog):
    files = write(tmp_path, "tfrecord", 3, 1)
    path = tmp_path / "web-000.tfrecord"
    data = bytearray(path.read_bytes())
    data[data.rindex(caption(1).encode())] ^= 1
    path.write_bytes(data)
    register(files)
    assert [bool(row["valid"]) for row in rows()][:3] == [True, False, True]
    assert "its checksum is not that of its content" in caplog.text
