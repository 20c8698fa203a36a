"""In a run bad images and videos are skipped, named and counted."""

import json

from tests.data.loaders import make_loader
from tests.data.test_odd_images import BAD, encode, plain
from tests.data.test_odd_videos import BAD_VIDEOS


def test_a_run_skips_every_bad_file_by_name_and_counts_it(tmp_path, caplog):
    from vadapter.data import tasks

    lines = []
    for i, (name, make) in enumerate(BAD.items()):
        (tmp_path / f"{i}.jpg").write_bytes(make())
        lines.append({"image": f"{i}.jpg", "caption": "x", "id": name})
    for i, (name, make) in enumerate(BAD_VIDEOS.items()):
        (tmp_path / f"v{i}").mkdir()
        lines.append({"video": str(make(tmp_path / f"v{i}")), "caption": "x", "id": f"video: {name}"})
    (tmp_path / "good.jpg").write_bytes(encode(plain(), "JPEG"))
    lines.append({"image": "good.jpg", "caption": "x", "id": "good"})
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    name = tasks.jsonl_task("bad", str(tmp_path / "all.jsonl"), str(tmp_path / "all.jsonl"), vocabulary="scenes")
    made = make_loader(name, batch_size=8, max_bad_share=1.0)
    valid = {row["id"]: row["valid"] for _, part in made.eval_batches() for row in part if row["id"]}
    assert made.counters()["skipped"] == len(lines) - 1
    assert [id_ for id_, good in valid.items() if good] in (["good"], [])
    for line in lines[:-1]:
        assert f"skipped {line['id']}: " in caplog.text
