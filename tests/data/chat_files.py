"""Files of conversations in the published layouts, made here."""

import base64
import io
import json

from PIL import Image

from tests.data.pair_files import add, png

QUESTIONS = ("what is it?", "and where?")


def answers(i: int) -> tuple[str, str]:
    return f"picture {i}", "on the left"


def data_url(i: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(i, 8)).decode()


def cauldron(i: int) -> dict:
    """HuggingFaceM4/the_cauldron: images as structs, turns as pairs, no marks."""
    pairs = [{"user": q, "assistant": a, "source": "made"} for q, a in zip(QUESTIONS, answers(i), strict=True)]
    return {"images": [{"bytes": png(i, 8), "path": None}], "texts": pairs[: 1 + i % 2]}


def finevision(i: int) -> dict:
    """HuggingFaceM4/FineVision: as the_cauldron, with ratings; some rows have no picture."""
    pairs = [{"user": q, "assistant": a} for q, a in zip(QUESTIONS, answers(i), strict=True)]
    shown = [{"bytes": png(i, 8), "path": f"{i}.png"}] if i % 10 else []
    ratings = {f"{name}_ratings": [5, 4] for name in ("relevance", "formatting", "visual_dependency")}
    ratings |= {"relevance_min": 4, "image_correspondence_ratings": [5, 5]}
    return {"images": shown, "texts": pairs, "source": "made", **ratings}


def llava(i: int, image: str = "coco/train2017/0.png") -> dict:
    """liuhaotian/LLaVA-Instruct-150K, llava_v1_5_mix665k.json: marks in the text; chats without a picture too."""
    first, second = answers(i)
    turns = [
        {"from": "human", "value": f"<image>\n{QUESTIONS[0]}"},
        {"from": "gpt", "value": first},
        {"from": "human", "value": QUESTIONS[1]},
        {"from": "gpt", "value": second},
    ]
    if i % 10:
        return {"id": f"{i:012d}", "image": image, "conversations": turns}
    turns[0] = {"from": "human", "value": QUESTIONS[0]}
    return {"id": f"chat{i}", "model": "", "conversations": turns}


def openai(i: int) -> dict:
    content = [{"type": "image_url", "image_url": {"url": data_url(i)}}, {"type": "text", "text": QUESTIONS[0]}]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    return {"messages": [*turns, {"role": "assistant", "content": answers(i)[0]}]}


def factory(i: int, images) -> dict:
    """LLaMA-Factory's mllm_demo.json."""
    turns = [{"role": "user", "content": f"<image>one and <image>two: {QUESTIONS[0]}"}]
    return {"messages": [*turns, {"role": "assistant", "content": answers(i)[0]}], "images": list(images)}


def write_jsonl(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return str(path)


def write_array(path, records, **style):
    path.write_text(json.dumps(list(records), **style), encoding="utf-8")
    return str(path)


def write_parquet(path, records, rows: int = 100):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=rows)
    return str(path)


def write_tar(path, samples):
    """`samples`: (key, record, {ending: bytes})."""
    import tarfile

    with tarfile.open(path, "w") as archive:
        for key, record, media in samples:
            for ending, content in media.items():
                add(archive, f"{key}.{ending}", content)
            add(archive, f"{key}.json", json.dumps(record).encode())
    return str(path)


def half(left: str, right: str, size: int = 16) -> bytes:
    """A PNG of two colours."""
    image = Image.new("RGB", (size, size), left)
    image.paste(Image.new("RGB", (size // 2, size), right), (size // 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
