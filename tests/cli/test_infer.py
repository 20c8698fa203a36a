"""`vadapter infer` on several files and folders, and its settings of decoding."""

import os

import numpy as np
import pytest
from PIL import Image

from tests import hang
from tests.tiny_bundle import write_bundle
from vadapter.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, and two pictures in a folder with other files."""
    path = tmp_path_factory.mktemp("infer")
    write_bundle(path)
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
