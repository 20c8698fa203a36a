"""`vadapter embed`: what is written for good and bad records, and how it goes on."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from PIL import Image

import vadapter
from tests import tiny_bundle
from vadapter.cli import embed_files
from vadapter.cli.main import main
from vadapter.data.rows import memory


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write_bundle(tmp_path_factory.mktemp("made"), lengths={"inputs": 40, "targets": 8})


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{i}.png")
    frames = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(4)]
    frames[0].save(folder / "1b.gif", save_all=True, append_images=frames[1:], duration=100)
    return folder


def lines(out):
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def soft_tokens(bundle, path):
    ours = vadapter.load(bundle)
    pixels = memory.read([str(path)], ours.sizes, ours.description.resize)[0].frames
    import jax

    params = jax.device_get(ours.params)
    return np.asarray(ours.model.apply({"params": params}, pixels[None], method="soft_tokens"))[0]


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_each_record_has_the_soft_tokens_of_its_own_picture(kind, bundle, photos, tmp_path):
    (photos / "2b.png").write_text("no picture")
    out = tmp_path / "out"
    command = ["embed", "--bundle", str(bundle), "--media", str(photos), f"--format={kind}", "--out", str(out)]
    assert main(command) == 2
    names = ["0.png", "1.png", "1b.gif", "2.png", "2b.png"]
    found = lines(out)
    assert [line["media"] for line in found] == [str(photos / name) for name in names]
    assert "not a readable image" in found[-1]["error"]
    for i, line in enumerate(found[:-1]):
        expected = soft_tokens(bundle, line["media"])
        assert line["shape"] == list(expected.shape)
        if kind == "safetensors":
            values = safetensors.numpy.load_file(out / line["file"])["embeds"]
        else:
            row = pq.read_table(out / line["file"]).slice(i, 1).to_pylist()[0]
            assert row["media"] == line["media"]
            values = np.asarray(row["embeds"], np.float32)
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_prompt_embeds_are_what_the_language_model_reads(bundle, photos, tmp_path):
    out = tmp_path / "out"
    command = ["embed", "--bundle", str(bundle), "--media", str(photos / "0.png"), "--out", str(out)]
    assert main([*command, "--prompt_embeds", "--question", "what is this ?"]) == 0
    ours = vadapter.load(bundle)
    import jax

    batch = ours.request(str(photos / "0.png"), "what is this ?")
    whole = ours.model.apply({"params": jax.device_get(ours.params)}, batch, method="embed")
    length = int((batch.segment_ids > 0).sum())
    values = safetensors.numpy.load_file(out / "00000000.safetensors")["embeds"]
    np.testing.assert_allclose(values, np.asarray(whole)[0, :length], atol=1e-5)


def test_the_same_command_goes_on_where_it_stopped(bundle, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed_files, "ROWS", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ["embed", "--bundle", str(bundle), "--media", str(photos), "--format=parquet", "--out"]
    assert main([*command, str(whole)]) == 0
    written = embed_files.Folder.write

    def stops(self, values, error):
        if self._next == 3:
            raise KeyboardInterrupt
        written(self, values, error)

    monkeypatch.setattr(embed_files.Folder, "write", stops)
    assert main([*command, str(cut)]) != 0
    monkeypatch.setattr(embed_files.Folder, "write", written)
    assert len(lines(cut)) == 3
    capsys.readouterr()
    assert main([*command, str(cut)]) == 0
    assert "has 3 of 4 records already" in capsys.readouterr().err

    def all_rows(folder):
        return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]

    assert [row["record"] for row in all_rows(cut)] == [0, 1, 2, 3]
    np.testing.assert_allclose(*([row["embeds"] for row in all_rows(x)] for x in (whole, cut)), atol=1e-6)
    assert main([*command, str(cut)]) == 0  # nothing is left to do


def test_what_cannot_be_written_is_said(bundle, photos, tmp_path, capsys):
    def fails(*arguments):
        assert main(["embed", "--bundle", str(bundle), "--media", str(photos / "0.png"), *arguments]) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "--prompt_embeds" in fails("--question=what", "--out", str(out))
    assert "did not write, such as 0.png" in fails("--out", str(photos))
    assert main(["embed", "--bundle", str(bundle), "--media", str(photos / "0.png"), "--out", str(out)]) == 0
    assert "whose format is 'safetensors'" in fails("--format=parquet", "--out", str(out))
    assert "whose prompt_embeds is False" in fails("--prompt_embeds", "--out", str(out))
    assert "<media>" in fails("--prompt_embeds", "--prompt=no place here", "--out", str(tmp_path / "other"))
    (out / "embeddings.json").write_text("{")
    assert "cannot be written" in fails("--out", str(out))


def test_a_bad_record_of_jsonl_costs_no_other(bundle, photos, tmp_path):
    records = [{"image": "0.png", "id": 7}, {"image": "none.png"}, "x", {"image": "1.png", "question": "what " * 99}]
    (photos / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    out = tmp_path / "out"
    command = ["embed", "--bundle", str(bundle), "--jsonl", str(photos / "records.jsonl"), "--out", str(out)]
    assert main([*command, "--prompt_embeds"]) == 2
    found = lines(out)
    assert [line.get("id") for line in found] == [7, None, None, None]
    assert ["error" in line for line in found] == [False, True, True, True]
    assert "do not fit" in found[3]["error"]
