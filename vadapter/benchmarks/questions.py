"""Readers of the official files of the question benchmarks. Each returns the items of a split in the file's order."""

import collections
from collections.abc import Sequence
from typing import Any

from etils import epath

from vadapter.benchmarks import captions, files
from vadapter.benchmarks.files import Item


def vqa(folder: epath.Path, names: Sequence[str], part: str) -> list[Item]:
    """VQAv2 and OKVQA: a file of `questions` and, but for test splits, one of `annotations` with ten answers each.

    `part` is the name of the COCO images, such as val2014, that the files' names of images are made of.
    """
    path = files.find(folder, names[0])
    rows = files.part(path, files.read_json(path, dict), "questions")
    rows = files.check_rows(path, rows, ("question_id", "image_id", "question"))
    files.check_unique(path, (row["question_id"] for row in rows), "question_id")
    found = _annotations(files.find(folder, names[1]), path, rows) if len(names) > 1 else {}
    items = []
    for row in rows:
        annotation = found.get(row["question_id"], {})
        answers = annotation.get("answers", [])
        items.append(
            Item(
                str(row["question_id"]),
                f"COCO_{part}_{int(row['image_id']):012d}",
                question=row["question"],
                answers=tuple(a["answer"] for a in answers),
                plain_answers=tuple(a.get("raw_answer") or a["answer"] for a in answers),
                question_type=str(annotation.get("question_type", "")),
                answer_type=str(annotation.get("answer_type", "")),
            )
        )
    return items


def _annotations(path: epath.Path, questions: epath.Path, rows: list[dict]) -> dict[int, dict[str, Any]]:
    found = files.part(path, files.read_json(path, dict), "annotations")
    others = ("image_id", "question_type", "answer_type", "multiple_choice_answer", "confidence")
    found = files.check_rows(path, found, ("question_id", "answers"), others)
    files.check_unique(path, (row["question_id"] for row in found), "question_id")
    by_id = {row["question_id"]: row for row in found}
    files.check_known(questions, (row["question_id"] for row in rows), by_id, str(path))
    answers = [answer for row in found for answer in row["answers"]]
    files.check_rows(path, answers, ("answer",), ("answer_id", "answer_confidence", "raw_answer"))
    return by_id


def textvqa(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """TextVQA: `data`, a list of questions with ten `answers`; the test split has none."""
    del part
    path = files.find(folder, names[0])
    rows = files.part(path, files.read_json(path, dict), "data")
    others = ("answers", "image_classes", "flickr_original_url", "flickr_300k_url", "image_width", "image_height")
    others = (*others, "question_tokens", "set_name")
    rows = files.check_rows(path, rows, ("question_id", "image_id", "question"), others)
    files.check_unique(path, (row["question_id"] for row in rows), "question_id")
    return [
        Item(str(r["question_id"]), str(r["image_id"]), question=r["question"], answers=files.texts(r.get("answers")))
        for r in rows
    ]


def vizwiz(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """VizWiz: a list of `image`, `question` and ten `answers`; the image's file name is the id."""
    del part
    path = files.find(folder, names[0])
    others = ("answers", "answer_type", "answerable")
    rows = files.check_rows(path, files.read_json(path, list), ("image", "question"), others)
    files.check_unique(path, (row["image"] for row in rows), "image")
    if answers := [answer for row in rows for answer in row.get("answers") or ()]:
        files.check_rows(path, answers, ("answer",), ("answer_confidence",))
    return [
        Item(
            row["image"],
            epath.Path(row["image"]).stem,
            question=row["question"],
            answers=tuple(a["answer"] for a in row.get("answers") or ()),
            answer_type=str(row.get("answer_type", "")),
        )
        for row in rows
    ]


_GQA = ("semantic", "entailed", "equivalent", "isBalanced", "groups", "semanticStr", "annotations", "types")


def gqa(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """GQA: an object whose keys are the ids of questions."""
    del part
    path = files.find(folder, names[0])
    data = files.read_json(path, dict, unique=True)
    rows = files.check_rows(path, list(data.values()), ("question", "imageId", "answer"), (*_GQA, "fullAnswer"))
    return [
        Item(
            key,
            str(row["imageId"]),
            question=row["question"],
            answers=(row["answer"],),
            question_type=str((row.get("types") or {}).get("structural", "")),
        )
        for key, row in zip(data, rows, strict=True)
    ]


def video_qa(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """MSRVTT-QA and MSVD-QA: a list of `id`, `video_id` (a number), `question` and one `answer`.

    `part` is what precedes the number in the name of the video's file; where there is a second file, MSVD's
    `youtube_mapping.txt`, it gives the name. The question's first word is its type, as in the data sets' paper.
    """
    path = files.find(folder, names[0])
    needed = ("id", "video_id", "question", "answer")
    rows = files.check_rows(path, files.read_json(path, list), needed, ("category_id",))
    files.check_unique(path, (row["id"] for row in rows))
    clips = captions.clip_names(folder, names[1]) if len(names) > 1 else None
    if clips is not None:
        files.check_known(path, (int(row["video_id"]) for row in rows), clips, names[1])
    return [
        Item(
            str(row["id"]),
            clips[int(row["video_id"])] if clips is not None else f"{part}{row['video_id']}",
            question=row["question"],
            answers=(str(row["answer"]),),
            question_type=row["question"].split(" ")[0].lower(),
        )
        for row in rows
    ]


_IVQA_ANSWERS = tuple(f"answer{i}" for i in range(1, 6))


def ivqa(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """iVQA: a CSV of `video_id`, `question` and `answer1` ... `answer5`.

    There are no ids of questions: that of the video is the id, as a clip has one question. Should a video have more,
    the second one's is `<video_id>#2`.
    """
    del part
    path = files.find(folder, names[0])
    others = ("start", "end", *(f"conf{i}" for i in range(1, 6)), "")
    rows = files.read_csv(path, ("video_id", "question", *_IVQA_ANSWERS), others)
    seen: collections.Counter[str] = collections.Counter()
    items = []
    for row in rows:
        video = row["video_id"]
        seen[video] += 1
        name = video if seen[video] == 1 else f"{video}#{seen[video]}"
        items.append(Item(name, video, question=row["question"], answers=tuple(row[k] for k in _IVQA_ANSWERS)))
    return items
