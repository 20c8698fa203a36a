"""`vadapter infer` on several files and folders, and its settings of decoding."""

import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests import hang
from tests.tiny_bundle import write_bundle
from vadapter.base.errors import UserError
from vadapter.cli import record_files
from vadapter.cli.main import main
from vadapter.generation.config import DecodingConfig
from vadapter.partitioning import MeshConfig, Partitioner, make_mesh
from vadapter.runs.load import load
from vadapter.runs.many import Item, say


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, and two pictures in a folder with other files."""
    path = tmp_path_factory.mktemp("infer")
    write_bundle(path, lengths={"inputs": 32, "targets": 16})
    (path / "photos" / "more").mkdir(parents=True)
    for i, name in enumerate(("b.JPG", "a.png", "more/c.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path / "photos" / name)
    (path / "photos" / "notes.txt").write_text("nothing to look at")
    return path


def infer(folder, *arguments):
    return main(["infer", f"--bundle={folder / 'bundle'}", "--max_new_tokens=2", *arguments])


def named(said):
    return [os.path.basename(line.split(":")[0]) for line in said.splitlines()]


def test_files_and_folders_are_read_in_order(folder, capsys):
    photos = folder / "photos"
    assert infer(folder, "--media", str(photos / "more" / "c.png"), str(photos)) == 0
    assert named(capsys.readouterr().out) == ["c.png", "a.png", "b.JPG"]


def test_an_unreadable_file_costs_no_other_its_text(folder, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "bad.mp4").write_text("no video")
    os.mkfifo(tmp_path / "pipe.png")
    with hang.stopped():
        assert infer(folder, f"--media={tmp_path}", f"--media={folder / 'photos' / 'a.png'}") == 2
    said = capsys.readouterr()
    assert named(said.out) == ["a.png"]
    assert "3 of 4 files cannot be read" in said.err and "is a FIFO" in said.err and "Traceback" not in said.err


def test_names_of_files_may_have_any_bytes(folder, tmp_path, capsys):
    """Found as: a name that is no UTF-8 ended in UnicodeEncodeError, and one with an escape reached the terminal."""
    names = [b"a\xff.png", b"b\x1b[31m.png", b"c\nd.png"]
    for name in names:
        content = (folder / "photos" / "a.png").read_bytes()
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    (tmp_path / "e\x1b\n.png").write_text("no picture")
    assert infer(folder, f"--media={tmp_path}") == 2
    said = capsys.readouterr()
    assert named(said.out) == [r"a\udcff.png", r"b\x1b[31m.png", r"c\nd.png"]
    assert r"e\x1b\n.png" in said.err and "\x1b" not in said.out + said.err
    assert infer(folder, f"--media={tmp_path}", f"--out={tmp_path / 'o.jsonl'}") == 2
    assert "\x1b" not in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert [os.path.basename(os.fsencode(r["media"])) for r in records] == [*names, b"e\x1b\n.png"]
    assert ["text" in r for r in records] == [True, True, True, False]


def test_a_prompt_that_fits_no_file_is_said_once(folder, capsys):
    assert infer(folder, f"--media={folder / 'photos'}", "--prompt=no place for it") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("Expected exactly one <media>") == 1


@pytest.mark.parametrize("make", [lambda path: None, os.mkfifo, lambda path: path.mkdir()])
def test_what_is_no_file_is_refused_before_the_model_is_read(tmp_path, capsys, make):
    make(tmp_path / "a.png")
    with hang.stopped():
        assert main(["infer", "--bundle=nowhere", f"--media={tmp_path / 'a.png'}"]) == 2
    assert "--media" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "method"),
    [("temperature=0.5", "sample"), ("top_p=0.5", "sample"), ("seed=1", "sample"), ("beams=2", "beam")],
)
def test_a_setting_of_another_way_of_decoding_is_refused(folder, capsys, setting, method):
    picture = f"--media={folder / 'photos' / 'a.png'}"
    assert infer(folder, picture, f"--{setting}") == 2
    assert f"Add --decoding={method}" in capsys.readouterr().err
    assert infer(folder, picture, f"--{setting}", f"--decoding={method}") == 0


def test_a_draft_changes_no_text_and_one_that_cannot_be_is_refused(folder, capsys):
    picture = f"--media={folder / 'photos' / 'a.png'}"
    assert infer(folder, picture, "--max_new_tokens=8") == 0
    plain = capsys.readouterr().out
    assert infer(folder, picture, "--max_new_tokens=8", "--draft=prompt_lookup", "--num_draft_tokens=99999999") == 0
    assert capsys.readouterr().out == plain
    for flags, said in (
        (["--num_draft_tokens=2"], "Add --draft"),
        (["--draft=prompt_lookup", "--num_draft_tokens=0"], "1 or more"),
        (["--draft=prompt_lookup", "--decoding=beam"], "beam search has no drafts"),
        (["--draft=words"], "num_words of one or more"),
    ):
        assert infer(folder, picture, *flags) == 2
        assert said in capsys.readouterr().err


def records_of(folder, tmp_path):
    """Five records, of which the second and the fourth cannot be answered."""
    photo = str(folder / "photos" / "a.png")
    os.symlink(folder / "photos" / "b.JPG", tmp_path / "beside.jpg")
    lines = [
        json.dumps({"id": "one", "image": photo}),
        json.dumps({"image": "missing.png", "question": "what ?"}),
        json.dumps({"image": "beside.jpg", "question": "what ?"}),
        '{"image": ',
        json.dumps({"id": 5, "image": photo, "question": None}),
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_records_give_an_object_each_and_a_bad_one_its_error(folder, tmp_path, capsys):
    path = records_of(folder, tmp_path)
    assert infer(folder, f"--jsonl={path}", f"--out={tmp_path / 'out.jsonl'}") == 2
    said = capsys.readouterr()
    assert said.out == "" and "2 of 5 records cannot be answered" in said.err and "Traceback" not in said.err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["line"] for row in found] == [1, 2, 3, 4, 5] and found[0]["id"] == "one" and found[4]["id"] == 5
    assert ["text" in row for row in found] == [True, False, True, False, True]
    assert "missing.png" in found[1]["error"] and "Line 4" in found[3]["error"]
    assert found[0]["text"] == found[4]["text"]


def test_fields_that_are_not_used_are_told(tmp_path, caplog):
    """Found as: a misspelt question, and a conversation of another layout, were captioned without a word."""
    path = tmp_path / "a.jsonl"
    known = {"id": 1, "image": "a.png", "question": "q", "answers": ["a"], "caption": "c", "type": "t"}
    lines = [known, {"image": "a.png", "questoin": "q"}, {"image": "a.png", "conversations": []}]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = [item for _, item in record_files.read(str(path))]
    assert [item.error is None for item in found] == [True, True, False]
    assert 'write "messages"' in (found[2].error or "")
    assert [r.getMessage() for r in caplog.records] == [f"{path}: fields that are not used: questoin"]


def test_conversations_are_answered_as_chat_does_it(folder, tmp_path, capsys):
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "<image>or<image>?"}]
    more = [{"role": "assistant", "content": "so"}, {"role": "user", "content": "why?"}]
    parts = [{"type": "image", "image": "photos/a.png"}, {"type": "text", "text": "what?"}]
    lines = [
        {"id": "marks", "messages": [*turns, *more], "images": ["photos/a.png", "photos/b.JPG"]},
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": turns, "images": ["photos/a.png"]},
        {"messages": more[:1]},
        {"messages": [{"role": "user", "content": parts[1:]}], "image": "photos/a.png"},
        {"messages": [{"role": "user", "content": [{**parts[0], "image": "photos/notes.txt"}]}]},
        {"image": "photos/a.png"},
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert infer(folder, f"--jsonl={folder / 'chats.jsonl'}", f"--out={tmp_path / 'out.jsonl'}") == 2
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["text" in row for row in found] == [True, True, True, False, False, False, False, True]
    said = ("2 places for images and videos", "user's turn", "do not go together", "notes.txt")
    assert [words for words, row in zip(said, found[3:7], strict=True) if words not in row["error"]] == []
    trained = load(str(folder / "bundle"))
    for number in (0, 2):
        item = Item(chat=lines[number], folder=str(folder))
        chat = trained.chat(item.conversation(), decoding=DecodingConfig(max_new_tokens=2))
        assert found[number]["text"] == chat


def test_a_conversation_from_the_command_line(folder, capsys):
    pictures = [str(folder / "photos" / name) for name in ("a.png", "b.JPG")]
    asked = ["--question=what?", "--question=and?", "--system=be brief"]
    assert infer(folder, "--chat", "--media", *pictures, *asked) == 0
    first, second = capsys.readouterr().out.splitlines()
    trained = load(str(folder / "bundle"))
    parts = [*({"type": "image", "image": path} for path in pictures), {"type": "text", "text": "what?"}]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    decoding = DecodingConfig(max_new_tokens=2)
    assert first == trained.chat(turns, decoding=decoding)
    turns += [{"role": "assistant", "content": first or "."}, {"role": "user", "content": "and?"}]
    assert second == trained.chat(turns, decoding=decoding)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chat"], "needs one question"),
        (["--chat", "--question= "], "needs one question"),
        (["--chat", "--question=a", "--jsonl=x"], "--jsonl does not go with --chat"),
        (["--chat", "--question=a", "--media=nowhere.png"], "nowhere.png"),
        (["--media=a.png", "--question=a", "--question=b"], "one --question for each file; found 2"),
        (["--media=a.png", "--system=a"], "Add --chat"),
    ],
)
def test_arguments_of_a_conversation_that_do_not_fit_are_explained(folder, arguments, said, capsys):
    assert infer(folder, *arguments) == 2
    assert said in capsys.readouterr().err


def test_an_interrupted_output_goes_on(folder, tmp_path, capsys):
    path, out = records_of(folder, tmp_path), tmp_path / "out.jsonl"
    infer(folder, f"--jsonl={path}", f"--out={out}")
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    kept = lines[0].replace('"text": "', '"text": "kept')
    out.write_text(kept + lines[1] + lines[2][:20])  # the third was being written
    infer(folder, f"--jsonl={path}", f"--out={out}")
    assert out.read_text() == kept + "".join(lines[1:])
    out.write_text(lines[1])
    assert infer(folder, f"--jsonl={path}", f"--out={out}") == 2
    assert "is no result of record 1" in capsys.readouterr().err and out.read_text() == lines[1]


def test_records_come_from_stdin_and_go_to_stdout(folder, monkeypatch, capsys):
    line = json.dumps({"image": str(folder / "photos" / "a.png")}).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line)))
    assert infer(folder, "--jsonl=-") == 0
    assert json.loads(capsys.readouterr().out)["text"] is not None


def test_a_pattern_names_files(folder, capsys):
    assert infer(folder, "--media", str(folder / "photos" / "*.png"), str(folder / "*" / "more" / "?.png")) == 0
    assert named(capsys.readouterr().out) == ["a.png", "c.png"]


@pytest.mark.parametrize(
    "arguments",
    [(), ("--jsonl=no.jsonl",), ("--jsonl=/dev/zero",), ("--jsonl=a.jsonl", "--media=a.png"), ("--media=*.nothing",)],
)
def test_what_cannot_be_read_is_refused_before_the_model_is_read(capsys, arguments):
    with hang.stopped():
        assert main(["infer", "--bundle=nowhere", *arguments]) == 2
    assert "--media" in (said := capsys.readouterr().err) or "--jsonl" in said


def test_many_at_a_time_say_what_each_says_alone(folder):
    """On one device, where they are decoded together."""
    trained = load(folder / "bundle", partitioner=Partitioner(make_mesh(MeshConfig(), jax.devices()[:1])))
    paths = [str(folder / "photos" / name) for name in ("a.png", "b.JPG", "more/c.png")]
    decoding = DecodingConfig(max_new_tokens=5)
    items = [Item(path, question) for question in (None, "what ?", "who ?") for path in paths]
    items.insert(4, Item("nowhere.png"))
    items.insert(0, Item(error="no record"))
    found = list(say(trained, items, decoding, rows=2))
    assert [said.error is None for said in found] == [item.error is None and item.media in paths for item in items]
    for item, said in zip(items, found, strict=True):
        if said.error is None and item.question is None:
            assert said.text == trained.caption(item.media, decoding=decoding)
        elif said.error is None and item.question is not None:
            assert said.text == trained.answer(item.media, item.question, decoding=decoding)
    with pytest.raises(UserError, match="<media>"):
        list(say(trained, [Item(paths[0], prompt="no place for it")]))


def test_help_and_mistakes_answer_without_jax():
    code = "import sys, vadapter.cli.infer; sys.exit('jax' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
