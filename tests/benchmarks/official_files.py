"""Small copies of the benchmarks' official files, in their formats, with pictures and clips: two or three items each.

`write(name, folder)` makes everything that a benchmark needs in `folder` and returns the split that papers report and
what its rows must be. With `items` that split has as many, up to 8, with the texts of `official_texts`.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import official_tables
from tests.benchmarks.expected import Expected
from tests.benchmarks.official_texts import ANSWERS, CAPTIONS
from tests.data.files import clip, picture


def dump(path: Path, value: Any) -> None:
    """Writes JSON as most of the official files are: on one line, ASCII."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _picture(path: Path, i: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(path, [(220, 30, 30), (30, 220, 30), (30, 30, 220)][i % 3])


def _clip(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    clip(path, [shade, shade, shade + 60, shade + 60])


_INFO = {"description": "a small copy", "version": "1.0", "year": 2014, "contributor": "-", "date_created": "-"}
TEN = ["yes", "yes", "no", "yes", "yes", "maybe", "yes", "yes", "yes", "yes"]


def coco_caption(folder: Path, items: int = 0) -> list[Expected]:
    evaluated = range(42, 42 + items) if items else (42, 73, 74)
    told = {n: CAPTIONS[i] if items else [f"Picture {n}, {k}." for k in range(2)] for i, n in enumerate(evaluated)}
    told |= {n: [f"Picture {n}, {k}." for k in range(2)] for n in (9, 25)}
    for year, part, ids in ((2014, "train", (9, 25)), (2014, "val", evaluated), (2017, "val", (42,))):
        images, annotations = [], []
        for i, number in enumerate(ids):
            name = f"COCO_{part}2014_{number:012d}.jpg" if year == 2014 else f"{number:012d}.jpg"
            images.append(
                {
                    **{"license": 3, "file_name": name, "coco_url": "-", "height": 30, "width": 40},
                    **{"date_captured": "2013-11-18 09:36:00", "flickr_url": "-", "id": number},
                }
            )
            _picture(folder / f"{part}{year}" / name, i)
            for k, caption in enumerate(told[number]):
                annotations.append({"image_id": number, "id": 1000 * number + k, "caption": caption})
        annotations.sort(key=lambda annotation: annotation["id"] % 1000)  # not by image, as in the official files
        value = {"info": _INFO, "images": images, "licenses": [], "type": "captions", "annotations": annotations}
        dump(folder / "annotations" / f"captions_{part}{year}.json", value)
    return [Expected(str(n), told[n]) for n in evaluated]


def coco_karpathy(folder: Path, items: int = 0) -> list[Expected]:
    images, rows = [], []
    evaluated = [("test", "val2014", 391895 + i) for i in range(items or 1)]
    for i, (split, path, number) in enumerate(
        [*evaluated, ("restval", "val2014", 184613), ("train", "train2014", 9), ("val", "val2014", 60)]
    ):
        name = f"COCO_{path}_{number:012d}.jpg"
        _picture(folder / path / name, i)
        raws = CAPTIONS[i] if i < items else [f"A man on a moped {number}. ", "Déjà vu"]
        sentences = [{"tokens": raw.lower().split(), "raw": raw, "imgid": i, "sentid": 77 + i} for raw in raws]
        images.append(
            {
                **{"filepath": path, "sentids": [77 + i], "filename": name, "imgid": i, "split": split},
                **{"sentences": sentences, "cocoid": number},
            }
        )
        if split == "test":
            rows.append(Expected(str(number), [raw.strip() for raw in raws]))
    dump(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return rows


def nocaps(folder: Path, items: int = 0) -> list[Expected]:
    count = items or 3
    domains = [("in-domain", "near-domain", "out-domain")[i % 3] for i in range(count)]
    images = [
        {
            **{"id": i, "open_images_id": f"0013ea208702090{i}", "height": 30, "width": 40, "coco_url": "-"},
            **{"date_captured": "2018-11-06 11:04:33", "file_name": f"0013ea208702090{i}.jpg", "license": 0},
            **({"domain": domains[i]} if i < count else {}),
        }
        for i in range(count + 1)
    ]
    told = CAPTIONS[:items] or [[f"Thing {i} seen {k}" for k in range(2)] for i in range(3)]
    pairs = [(i, caption) for i, captions in enumerate(told) for caption in captions]
    captions = [{"image_id": i, "id": number, "caption": caption} for number, (i, caption) in enumerate(pairs)]
    for i, image in enumerate(images):
        _picture(folder / ("val" if i < count else "test") / image["file_name"], i)
    value = {"licenses": [], "info": _INFO, "images": images[:count], "annotations": captions}
    dump(folder / "nocaps_val_4500_captions.json", value)
    dump(folder / "nocaps_test_image_info.json", {"licenses": [], "info": _INFO, "images": images[count:]})
    return [Expected(str(i), told[i], extra={"domain": domains[i]}) for i in range(count)]


def msrvtt_caption(folder: Path, items: int = 0) -> list[Expected]:
    evaluated = tuple(range(7010, 7010 + (items or 2)))
    told = {n: [f"clip {n} said {k}" for k in range(2)] for n in (0, 6513, *evaluated)}
    told |= dict(zip(evaluated, CAPTIONS[:items], strict=False))
    for name, numbers in (("train_val", (0, 6513)), ("test", evaluated)):
        videos = [
            {
                **{"category": 9, "url": "-", "video_id": f"video{n}", "start time": 137.72, "end time": 149.44},
                **{"split": {0: "train", 6513: "validate"}.get(n, "test"), "id": n},
            }
            for n in numbers
        ]
        sentences = [
            {"caption": told[n][k], "video_id": f"video{n}", "sen_id": 10 * n + k}
            for k in range(len(told[numbers[0]]))
            for n in numbers
        ]
        dump(folder / f"{name}_videodatainfo.json", {"info": _INFO, "videos": videos, "sentences": sentences})
    for n in told:
        _clip(folder / ("TestVideo" if n > 7009 else "TrainValVideo") / f"video{n}.mp4", 60 if n == 7011 else 100)
    return [Expected(f"video{n}", told[n]) for n in evaluated]


def vatex_caption(folder: Path, items: int = 0) -> list[Expected]:
    names = ["-GBUb8Rwz6A_000028_000038", "Ptf_2VRj-V0_000122_000132"]
    names += [f"Ptf_2VRj-V{i}_000001_000011" for i in range(2, items)]
    told = CAPTIONS[:items] or [[f"{n[:3]} jumps {k}." for k in range(3)] for n in names]
    rows = [{"videoID": n, "enCap": captions} for n, captions in zip(names, told, strict=True)]
    dump(folder / "vatex_public_test_english_v1.1.json", rows)
    dump(folder / "vatex_validation_v1.0.json", [{**row, "chCap": ["跳"]} for row in rows[:1]])
    for i, name in enumerate(names):
        _clip(folder / "videos" / f"{name}.{'mkv' if i == 1 else 'mp4'}")
    return [Expected(row["videoID"], row["enCap"]) for row in rows]


CLIPS = {1: "-4wsuPCjDBc_5_15", 1200: "-7KMZQEsJW4_205_208", 1201: "mv89psg6zh4_33_46", 1301: "-8y1Q0rA3n8_108_115"}


def _msvd(folder: Path, items: int = 0) -> dict[int, str]:
    """Returns the clips by number; those from 1301 on are the test split."""
    clips = CLIPS | {1301 + i: f"-8y1Q0rA3n8_{i}_{i + 9}" for i in range(1, items)}
    (folder / "youtube_mapping.txt").write_text("".join(f"{name} vid{n}\n" for n, name in clips.items()))
    for name in clips.values():
        _clip(folder / "YouTubeClips" / f"{name}.avi")
    return clips


def msvd_caption(folder: Path, items: int = 0) -> list[Expected]:
    clips = _msvd(folder, items)
    told = {n: [f"a clip of number {n}"] for n in clips}
    told[1301].append("somebody shows 1301")
    told |= {1301 + i: captions for i, captions in enumerate(CAPTIONS[:items])}
    lines = [f"{clips[n]} {caption}" for n, captions in told.items() for caption in captions]
    (folder / "AllVideoDescriptions.txt").write_text("\n".join(["# a comment of the authors", "", *lines]) + "\n")
    return [Expected(clips[n], captions) for n, captions in told.items() if n >= 1301]


def _vqa(
    folder: Path, part: str, names: tuple[str, ...], count: int, raw: bool = False, texts: Sequence[list[str]] = ()
) -> None:
    questions, annotations = [], []
    for i in range(count):
        image = 262148 + i // 2  # two questions about each image
        number = 1000 * image + i
        questions.append({"image_id": image, "question": f"Is picture {i} of {part} red?", "question_id": number})
        answers = [
            {"answer": a, "answer_confidence": "yes", "answer_id": k + 1, **({"raw_answer": f"{a}!"} if raw else {})}
            for k, a in enumerate(texts[i] if texts else TEN)
        ]
        annotations.append(
            {
                **{"question_type": "is", "multiple_choice_answer": "yes", "answers": answers, "image_id": image},
                **{"answer_type": "yes/no", "question_id": number},
            }
        )
        _picture(folder / part / f"COCO_{part}_{image:012d}.jpg", i // 2)
    top = {"info": _INFO, "license": {}, "data_subtype": part, "data_type": "mscoco"}
    dump(folder / names[0], {**top, "task_type": "Open-Ended", "questions": questions})
    if len(names) > 1:
        dump(folder / names[1], {**top, "annotations": annotations[::-1]})


def _vqa_rows(items: int) -> list[Expected]:
    extra = {"question_type": "is", "answer_type": "yes/no"}
    return [
        Expected(
            str(1000 * (262148 + i // 2) + i),
            ANSWERS[i] if items else TEN,
            f"Is picture {i} of val2014 red",
            {**extra, "image": f"COCO_val2014_{262148 + i // 2:012d}"},
        )
        for i in range(items or 3)
    ]


def vqav2(folder: Path, items: int = 0) -> list[Expected]:
    for part, count, texts in (("train2014", 8, []), ("val2014", items or 3, ANSWERS[:items])):
        names = (f"v2_OpenEnded_mscoco_{part}_questions.json", f"v2_mscoco_{part}_annotations.json")
        _vqa(folder, part, names, count, texts=texts)
    _vqa(folder, "test2015", ("v2_OpenEnded_mscoco_test-dev2015_questions.json",), 2)
    return _vqa_rows(items)


def okvqa(folder: Path, items: int = 0) -> list[Expected]:
    for part, count, texts in (("train2014", 8, []), ("val2014", items or 3, ANSWERS[:items])):
        names = (f"OpenEnded_mscoco_{part}_questions.json", f"mscoco_{part}_annotations.json")
        _vqa(folder, part, names, count, raw=True, texts=texts)
    return _vqa_rows(items)


def textvqa(folder: Path, items: int = 0) -> list[Expected]:
    said = {34602 + i: answers for i, answers in enumerate(ANSWERS[:items] or [[*TEN[:8], "", "STOP"]] * 2)}
    for part, first, count in (("train", 0, 6), ("val", 34602, len(said)), ("test", 39602, 1)):
        rows = [
            {
                **{"question": f"what does sign {n} say?", "image_id": f"003a8ae2ef43b9{n:05d}", "question_id": n},
                **{"image_classes": ["Sign"], "flickr_original_url": "-", "flickr_300k_url": "-", "image_width": 40},
                **{"image_height": 30, "question_tokens": ["what"], "set_name": part},
                **({} if part == "test" else {"answers": said.get(n, [*TEN[:8], "", "STOP"])}),
            }
            for n in range(first, first + count)
        ]
        value = {"dataset_type": part, "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}
        dump(folder / f"TextVQA_0.5.1_{part}.json", value)
        for row in rows:
            _picture(folder / ("test_images" if part == "test" else "train_images") / f"{row['image_id']}.jpg")
    return [
        Expected(str(n), answers, f"what does sign {n} say", {"image": f"003a8ae2ef43b9{n:05d}"})
        for n, answers in said.items()
    ]


def vizwiz_vqa(folder: Path, items: int = 0) -> list[Expected]:
    usual = ["unanswerable"] * 4 + ["soup"] * 5 + ["can of soup"]
    said = ANSWERS[:items] or [usual] * 2
    for part, count in (("train", 6), ("val", len(said)), ("test", 1)):
        rows: list[dict[str, Any]] = []
        for i in range(count):
            row: dict[str, Any] = {"image": f"VizWiz_{part}_{i:08d}.jpg", "question": f"What is this {i}? "}
            if part != "test":
                answers = said[i] if part == "val" else usual
                row["answers"] = [{"answer": a, "answer_confidence": "maybe"} for a in answers]
                row |= {"answer_type": "other", "answerable": 1}
            rows.append(row)
            _picture(folder / part / row["image"], i)
        dump(folder / f"{part}.json", rows)
    extra = {"answer_type": "other"}
    names = [f"VizWiz_val_{i:08d}.jpg" for i in range(len(said))]
    return [Expected(names[i], answers, f"What is this {i}", extra) for i, answers in enumerate(said)]


def gqa(folder: Path, items: int = 0) -> list[Expected]:
    said = [answers[0] for answers in ANSWERS[:items]] or ["yes"] * 2
    for part, answers in (("train", ["yes"] * 6), ("val", ["yes"]), ("testdev", said)):
        rows, count = {}, len(answers)
        for i in range(count):
            types = {"detailed": "existAttr", "semantic": "attr", "structural": "verify"}
            rows[f"2{count}{i:04d}"] = {
                **{"semantic": [], "entailed": [], "equivalent": [f"2{count}{i:04d}"], "imageId": f"n{i // 2}"},
                **{"question": f"Is the sky {part} {i}?", "isBalanced": True, "groups": {"global": "", "local": "-"}},
                **{"answer": answers[i], "semanticStr": "-", "annotations": {}, "types": types, "fullAnswer": "Yes."},
            }
            _picture(folder / "images" / f"n{i // 2}.jpg")
        dump(folder / f"{part}_balanced_questions.json", rows)
    return [
        Expected(f"2{len(said)}{i:04d}", [answer], f"Is the sky testdev {i}", {**_VERIFY, "image": f"n{i // 2}"})
        for i, answer in enumerate(said)
    ]


_VERIFY = {"question_type": "verify"}


def _video_qa(folder: Path, videos: dict[str, int], items: int, **more: int) -> list[str]:
    """Returns the answers of the test split."""
    said = [answers[0] for answers in ANSWERS[:items]] or ["dog0", "dog1"]
    for start, (part, video) in enumerate(videos.items()):
        rows = [
            {"answer": answer, **more, "id": 1000 * start + i, "question": f"who runs {i}?", "video_id": video}
            for i, answer in enumerate(said if part == "test" else [f"dog{i}" for i in range(6)])
        ]
        dump(folder / f"{part}_qa.json", rows)
    return said


def msrvtt_qa(folder: Path, items: int = 0) -> list[Expected]:
    said = _video_qa(folder, {"train": 0, "val": 6513, "test": 7010}, items, category_id=3)
    for n in (0, 6513, 7010):
        _clip(folder / "videos" / f"video{n}.mp4")
    extra = {"question_type": "who", "image": "video7010"}
    return [Expected(f"{2000 + i}", [answer], f"who runs {i}", extra) for i, answer in enumerate(said)]


def msvd_qa(folder: Path, items: int = 0) -> list[Expected]:
    clips = _msvd(folder)
    said = _video_qa(folder, {"train": 1, "val": 1201, "test": 1301}, items)
    extra = {"question_type": "who", "image": clips[1301]}
    return [Expected(f"{2000 + i}", [answer], f"who runs {i}", extra) for i, answer in enumerate(said)]


def ivqa(folder: Path, items: int = 0) -> list[Expected]:
    folder.mkdir(parents=True, exist_ok=True)
    usual = ["chef's knife", "knife", "knife", "a knife, sharp", "blade"]
    said = [answers[2:7] for answers in ANSWERS[:items]] or [usual] * 2
    for part, count in (("train", 6), ("val", 1), ("test", len(said))):
        with open(folder / f"{part}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["video_id", "start", "end", "question", *(f"answer{i}" for i in range(1, 6))])
            for i in range(count):
                answers = said[i] if part == "test" else usual
                table.writerow([f"{part}-{i}", 10, 20, f'What is the "tool" {i}, here?', *answers])
                _clip(folder / "videos" / f"{part}-{i}.mp4")
    return [Expected(f"test-{i}", answers, f'What is the "tool" {i}, here') for i, answers in enumerate(said)]


def pope(folder: Path, items: int = 0) -> list[Expected]:
    expected = []
    for kind in ("random", "popular", "adversarial"):
        lines = []
        for i in range(max(1, items - 2 * 2) if kind == "random" and items else 2):
            name, label = f"COCO_val2014_{310196 + i // 2:012d}", ("yes", "no")[i % 2]
            text = f"Is there a {kind} thing {i} in the image?"
            lines.append({"question_id": i + 1, "image": f"{name}.jpg", "text": text, "label": label})
            extra = {"question_type": kind, "image": name}
            expected.append(Expected(f"{kind}_{i + 1}", [label], text.removesuffix("?"), extra))
            _picture(folder / "val2014" / f"{name}.jpg", i // 2)
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"coco_pope_{kind}.json").write_text(text)
    return expected


def docvqa(folder: Path, items: int = 0) -> list[Expected]:
    said = ANSWERS[:items] or [["0.28"], ["University of California", "university of california, san diego"]]
    for part, first, count in (("train", 337, 6), ("val", 49153, len(said)), ("test", 57344, 1)):
        rows = [
            {
                **{"questionId": n, "question": f"What is the actual value {n}?", "question_types": ["form"]},
                **{"image": f"documents/pybv0228_{n // 2}.png", "docId": 279, "ucsf_document_id": "pybv0228"},
                **{"ucsf_document_page_no": "81", "data_split": part},
                **({} if part == "test" else {"answers": said[n - first] if part == "val" else ["0.28"]}),
            }
            for n in range(first, first + count)
        ]
        value = {"dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": part, "data": rows}
        dump(folder / ("test_v1.0.json" if part == "test" else f"{part}_v1.0_withQT.json"), value)
        for row in rows:
            _picture(folder / "spdocvqa_images" / Path(row["image"]).name)
    names = [f"pybv0228_{(49153 + i) // 2}" for i in range(len(said))]
    return [
        Expected(str(49153 + i), answers, f"What is the actual value {49153 + i}", {"image": names[i]})
        for i, answers in enumerate(said)
    ]


def chartqa(folder: Path, items: int = 0) -> list[Expected]:
    expected = []
    for part, count in (("train", 6), ("val", 2), ("test", items or 4)):
        for kind, first in (("human", 0), ("augmented", count // 2)):
            rows = [
                {
                    "imgname": f"{'two_col_' if kind == 'augmented' else '4169905100'}{i}.png",
                    "query": f"How many {kind} bars {i}?",
                    "label": ANSWERS[i][0] if items and part == "test" else f"{i + 14}",
                }
                for i in range(first, first + count // 2)
            ]
            dump(folder / part / f"{part}_{kind}.json", rows)
            for i, row in enumerate(rows):
                _picture(folder / part / "png" / row["imgname"], i)
                extra = {"question_type": kind, "image": row["imgname"].removesuffix(".png")}
                if part == "test":
                    expected.append(Expected(f"{kind}_{i}", [row["label"]], row["query"].removesuffix("?"), extra))
    return expected


WRITERS = {
    f.__name__: f
    for f in (
        *(coco_caption, coco_karpathy, nocaps, msrvtt_caption, vatex_caption, msvd_caption),
        *(vqav2, textvqa, vizwiz_vqa, okvqa, gqa, msrvtt_qa, msvd_qa, ivqa),
        *(pope, docvqa, chartqa),
    )
} | official_tables.WRITERS
WITHOUT_EXAMPLES = ("pope", *official_tables.WITHOUT_EXAMPLES)


def write(name: str, folder: Path, items: int = 0) -> list[Expected]:
    """Writes the official files and media of a benchmark; `items` as above.

    Returns:
        The rows of the split that papers report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return WRITERS[name](folder, items)
