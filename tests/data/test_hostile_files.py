"""Files of others neither hang a process, nor fill its memory, nor open what they have no business with."""

import io
import json
import os
import resource
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests import hang
from tests.data.files import clip, picture
from tests.data.loaders import make_loader
from tests.data.pair_files import png
from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.data import tasks
from vadapter.data.reading import images, jsonl, records, video
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.sources import Medium
from vadapter.data.rows import vocabulary as vocabularies


@pytest.fixture(autouse=True)
def no_hang(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with hang.stopped():
        yield


def fifo(folder, name):
    os.mkfifo(folder / name)
    return folder / name


def listening(folder, name):
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # names of sockets are short
    server.bind(name)
    os.chdir(here)
    server.close()
    return folder / name


def inner_folder(folder, name):
    (folder / name).mkdir()
    return folder / name


def device(folder, name):
    (folder / name).symlink_to("/dev/zero")
    return folder / name


NO_FILES = {"a FIFO": fifo, "a socket": listening, "a folder": inner_folder, "a device": device}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_regular_file_is_refused_wherever_a_file_is_read(tmp_path, kind):
    make = NO_FILES[kind]
    for read in (local_files.read_bytes, local_files.check, local_files.descriptor):
        with pytest.raises(local_files.NotAFile, match=kind):
            read(make(tmp_path, read.__name__))
    for read, name in ((images.load, "a.png"), (lambda path: video.load(path, 2, 16), "a.mp4")):
        with pytest.raises(UserError, match=kind):
            read(make(tmp_path, name))
    assert Medium.of_file(str(tmp_path / "a.png")).digest is None
    with pytest.raises(UserError, match=f"JSONL.*{kind}"):
        tasks.jsonl_task("own", str(make(tmp_path, "a.jsonl")), vocabulary="scenes")
    for ending in ("tar", "tfrecord", "array_record", "parquet", "jsonl"):
        with pytest.raises(UserError, match=kind):
            tasks.pairs_task("pairs", str(make(tmp_path, f"b.{ending}")), vocabulary="scenes")
    with pytest.raises(UserError):  # a folder is looked into
        vocabularies.load_vocabulary(str(make(tmp_path, "tokenizer.json")))


def rows(lines, folder, **settings):
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = str(folder / "own.jsonl")
    mixture = tasks.jsonl_task("own", file, file, vocabulary="scenes", max_bad_share=0.9, **settings)
    made = make_loader(mixture, split="validation", batch_size=4, max_bad_share=1.0)
    return [row for _, found in made.eval_batches() for row in found if row["id"]]


def test_a_record_whose_file_is_a_fifo_is_a_bad_record(tmp_path, caplog):
    fifo(tmp_path, "a.png"), fifo(tmp_path, "a.mp4"), picture(tmp_path / "b.png")
    lines = [{"image": "a.png", "caption": "x"}, {"image": "b.png", "caption": "y"}, {"video": "a.mp4", "caption": "z"}]
    found = rows(lines, tmp_path)
    assert [row["references"] for row in found if row["valid"]] == [["y"]]
    assert caplog.text.count("is a FIFO") == 2


# Places


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "secret").mkdir()
    picture(tmp_path / "secret/a.png")
    (tmp_path / "own").mkdir()
    picture(tmp_path / "own/b.png")
    (tmp_path / "own/link.png").symlink_to(tmp_path / "secret/a.png")
    (tmp_path / "own/folder").symlink_to(tmp_path / "secret")
    return tmp_path / "own"


NAMES = ("../secret/a.png", "link.png", "folder/a.png", "{secret}/a.png", "folder/../../secret/a.png")


@pytest.mark.parametrize("name", NAMES)
def test_media_outside_of_the_folder_of_their_list_need_a_setting(outside, name, caplog):
    name = name.format(secret=outside.parent / "secret")
    lines = [{"image": "b.png", "caption": "mine"}, {"image": name, "caption": "theirs"}]
    found = rows(lines, outside)
    assert [row["references"][0] for row in found if row["valid"]] == ["mine"]
    assert f"set jsonl_task.media_folders = ['{outside.parent / 'secret'}']" in caplog.text
    for allowed in (outside.parent / "secret", outside.parent, "/"):
        found = rows(lines, outside, media_folders=[str(allowed)])
        assert [row["references"][0] for row in found if row["valid"]] == ["mine", "theirs"]


def test_a_list_of_media_elsewhere_says_what_to_add(outside):
    lines = [{"image": str(outside.parent / "secret/a.png"), "caption": "x"}]
    with pytest.raises(UserError, match=r"media_folders = \['.*/secret'\]"):
        rows(lines, outside)
    lines = [{"image": name, "caption": "x"} for name in ("/etc/passwd", "/dev/zero", "/etc/shadow")]
    with pytest.raises(UserError, match=r"media_folders = \['/dev', '/etc'\]"):  # and not all of the disk
        rows(lines, outside)


@pytest.mark.parametrize("name", ["file:///etc/passwd", "ram://other/a.png", "ram://own/../other/a.png"])
def test_an_address_is_outside_of_a_folder_here(outside, name, caplog):
    rows([{"image": "b.png", "caption": "mine"}, {"image": name, "caption": "x"}], outside)
    assert "media_folders" in caplog.text


def test_pairs_name_files_beside_them_only(outside):
    text = "".join(json.dumps({"image": name, "caption": "x"}) + "\n" for name in ("b.png", *NAMES[:3]))
    (outside / "pairs.jsonl").write_text(text)

    def valid(**settings):
        mixture = tasks.pairs_task("pairs", str(outside / "pairs.jsonl"), holdout=0, vocabulary="scenes", **settings)
        made = make_loader(mixture, split="train", batch_size=4, max_bad_share=1.0)
        return sum(bool(row["valid"]) for _, found in made.eval_batches() for row in found)

    assert valid() == 1
    assert valid(media_folders=[str(outside.parent / "secret")]) == 4


def test_no_message_has_content_of_a_file(outside, caplog):
    (outside / "a.png").write_text("root:x:0:0:root:/root:/bin/bash\n")
    rows([{"image": "b.png", "caption": "x"}, {"image": "a.png", "caption": "x"}], outside)
    assert "look like text" in caplog.text and "root:x" not in caplog.text
    with pytest.raises(UserError) as error:
        images.load(outside / "a.png")
    assert "root:x" not in str(error.value)


# Bounds


def bomb(width, height):
    """A PNG of one bit a pixel, of some kB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded():
    data, before = bomb(13_000, 13_000), peak()
    assert len(data) < 30_000
    with pytest.raises(MediaError, match="13000x13000 pixels are more than"):
        images.decode(data, 64)
    assert peak() - before < 64 << 20


@pytest.mark.parametrize("mode", ["stretch", "pad", "center_crop bicubic 256/224"])
def test_a_large_photograph_is_decoded_at_a_fraction(mode):
    out = io.BytesIO()
    Image.new("RGB", (11_600, 8_700), (200, 30, 30)).save(out, "JPEG", quality=50)  # more than MAX_PIXELS
    np.testing.assert_allclose(images.decode(out.getvalue(), 16, mode)[8, 8], (200, 30, 30), atol=4)


def test_half_a_photograph_s_size_shows_the_model_the_same(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((800, 600)).save(out, "JPEG", quality=95)
    whole = images.decode(out.getvalue(), 64, "center_crop bicubic").astype(int)
    monkeypatch.setattr(images, "MAX_PIXELS", 600 * 800 - 1)
    assert np.abs(images.decode(out.getvalue(), 64, "center_crop bicubic") - whole).max() <= 6


def test_a_jpeg_of_too_many_passes_is_refused():
    out = io.BytesIO()
    Image.new("RGB", (640, 640), (200, 30, 30)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    images.decode(data, 16)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(MediaError, match="passes takes too long"):
        images.decode(data[:-2] + data[last:-2] * 6000 + data[-2:], 16)


def test_a_large_file_is_no_picture_and_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 30)  # zeros that take no room
    before = peak()
    with pytest.raises(UserError, match="1073741824 bytes, and at most"):
        images.load(tmp_path / "a.png")
    with pytest.raises(UserError):
        jsonl.read_jsonl(str(tmp_path / "a.png"))
    assert peak() - before < 64 << 20


@pytest.mark.parametrize(
    "name", ["a\0.png", "\0", "a" * 5000, "\ud800.png", "", "/", ".", "..", "~", "a/b/c.png", "http://[", "://"]
)
@pytest.mark.parametrize("media", ["image", "video"])
def test_an_odd_path_is_a_bad_record(tmp_path, name, media):
    picture(tmp_path / "b.png")
    found = rows([{"image": "b.png", "caption": "mine"}, {media: name, "caption": "x"}], tmp_path, media_folders=["/"])
    assert [row["references"][0] for row in found if row["valid"]] == ["mine"]


def test_a_hostile_line_is_a_bad_line_and_the_others_are_read(tmp_path):
    good = json.dumps({"image": "a.png", "caption": "x"})
    bad = ["[" * 100_000, '{"a":' * 5000, "9" * 5000, "{" + ",".join(f'"{i}":1' for i in range(50_000)) + "}"]
    bad += ['{"image": "a.png", "caption": "' + "x" * (jsonl.MAX_LINE_BYTES) + '"}', "\0" * 1000, '{"image": NaN}']
    (tmp_path / "a.jsonl").write_text("\n".join([good, *bad, good]))
    assert len(jsonl.read_jsonl(str(tmp_path / "a.jsonl"), max_bad_share=0.9)) == 2
    with pytest.raises(UserError, match="found 2 such lines and 7 others"):
        jsonl.read_jsonl(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile a.mp4\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    ],
)
def test_a_playlist_is_no_video(tmp_path, text):
    clip(tmp_path / "a.mp4", [20, 240])
    (tmp_path / "list.mp4").write_text(text.format(clip=tmp_path / "a.mp4"))
    for source in (tmp_path / "list.mp4", (tmp_path / "list.mp4").read_bytes()):
        with pytest.raises(MediaError):
            video.decode(source, 2, 16)
    assert video.decode(tmp_path / "a.mp4", 2, 16).shape == (2, 16, 16, 3)


def test_a_clip_of_too_many_frames_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAMES", 3)
    with pytest.raises(MediaError, match="more than 3 frames"):
        video.decode(clip(tmp_path / "a.mp4", range(0, 250, 25)), 2, 16)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path, monkeypatch):
    clip(tmp_path / "concat:a.mp4", [20, 240])
    monkeypatch.chdir(tmp_path)
    assert video.decode("concat:a.mp4", 2, 16).shape == (2, 16, 16, 3)


def test_messages_of_records_are_short(tmp_path):
    record = records.make_record("a", "http://" + "x" * 100_000, "caption", "")
    assert len(record.error) < 1000
    assert records.make_record("a", png(0), "caption", "").error == ""
