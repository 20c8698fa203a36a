"""Readers of the official files of the caption benchmarks. Each returns the items of a split in the file's order."""

import collections
from collections.abc import Sequence

from etils import epath

from vadapter.base.errors import UserError
from vadapter.benchmarks import files
from vadapter.benchmarks.files import Item

_COCO_IMAGE = ("license", "coco_url", "flickr_url", "height", "width", "date_captured", "open_images_id", "domain")


def coco(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """COCO captions and nocaps: `images` (id, file_name, domain) and, but for test splits, `annotations`."""
    del part
    path = files.find(folder, names[0])
    data = files.read_json(path, dict)
    images = files.check_rows(path, files.part(path, data, "images"), ("id", "file_name"), _COCO_IMAGE)
    files.check_unique(path, (image["id"] for image in images), "image id")
    captions: dict[int, list[str]] = {image["id"]: [] for image in images}
    if "annotations" in data:
        rows = files.check_rows(path, data["annotations"], ("image_id", "caption"), ("id",))
        files.check_known(path, (row["image_id"] for row in rows), captions, "its images")
        for row in rows:
            captions[row["image_id"]].append(row["caption"].strip())
    return [
        Item(
            str(image["id"]),
            epath.Path(image["file_name"]).stem,
            tuple(captions[image["id"]]),
            domain=image.get("domain", ""),
        )
        for image in images
    ]


def karpathy(folder: epath.Path, names: Sequence[str], part: str) -> list[Item]:
    """Karpathy's `dataset_coco.json`; `part` is the value of `split`, several joined by +."""
    path = files.find(folder, names[0])
    others = ("filepath", "sentids", "imgid")
    images = files.part(path, files.read_json(path, dict), "images")
    images = files.check_rows(path, images, ("cocoid", "filename", "split", "sentences"), others)
    files.check_unique(path, (image["cocoid"] for image in images), "cocoid")
    chosen = [image for image in images if image["split"] in part.split("+")]
    if sentences := [sentence for image in chosen for sentence in image["sentences"]]:
        files.check_rows(path, sentences, ("raw",), ("tokens", "imgid", "sentid"))
    items = [
        Item(
            str(image["cocoid"]),
            epath.Path(image["filename"]).stem,
            tuple(sentence["raw"].strip() for sentence in image["sentences"]),
        )
        for image in chosen
    ]
    return _some(path, items, part)


def msrvtt(folder: epath.Path, names: Sequence[str], part: str) -> list[Item]:
    """MSRVTT's `videos` (video_id, split) and `sentences` (video_id, caption)."""
    path = files.find(folder, names[0])
    data = files.read_json(path, dict)
    others = ("id", "category", "url", "start time", "end time")
    videos = files.check_rows(path, files.part(path, data, "videos"), ("video_id", "split"), others)
    files.check_unique(path, (video["video_id"] for video in videos), "video_id")
    rows = files.check_rows(path, files.part(path, data, "sentences"), ("video_id", "caption"), ("sen_id",))
    captions: dict[str, list[str]] = {video["video_id"]: [] for video in videos}
    files.check_known(path, (row["video_id"] for row in rows), captions, "its videos")
    for row in rows:
        captions[row["video_id"]].append(row["caption"].strip())
    chosen = [video["video_id"] for video in videos if video["split"] == part]
    return _some(path, [Item(name, name, tuple(captions[name])) for name in chosen], part)


def vatex(folder: epath.Path, names: Sequence[str], part: str = "") -> list[Item]:
    """VATEX: a list of `videoID` and `enCap` (English captions)."""
    del part
    path = files.find(folder, names[0])
    rows = files.check_rows(path, files.read_json(path, list), ("videoID", "enCap"), ("chCap",))
    files.check_unique(path, (row["videoID"] for row in rows), "videoID")
    return [Item(row["videoID"], row["videoID"], tuple(caption.strip() for caption in row["enCap"])) for row in rows]


def msvd(folder: epath.Path, names: Sequence[str], part: str) -> list[Item]:
    """MSVD: `AllVideoDescriptions.txt` and, for the order that the splits go by, `youtube_mapping.txt`.

    `AllVideoDescriptions.txt` has a clip's name and an English caption a line; lines that begin with # are comments.
    Without it, the original `MSR Video Description Corpus.csv` is read, its English rows. `part` is "first-last", the
    numbers of the clips (vid1 is 1) in the split of Venugopalan et al. that everybody uses.
    """
    described, mapping = names[0], names[1]
    numbers = clip_names(folder, mapping)
    first, last = map(int, part.split("-"))
    captions = _msvd_captions(folder, described, names[2])
    chosen = [(number, name) for number, name in sorted(numbers.items()) if first <= number <= last]
    items = [Item(name, name, tuple(captions.get(name, ()))) for _, name in chosen]
    return _some(files.find(folder, mapping), items, part)


def _msvd_captions(folder: epath.Path, text: str, table: str) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = collections.defaultdict(list)
    try:
        path = files.find(folder, text)
    except UserError:
        if not any((place / table).exists() for place in (folder, folder / "annotations")):
            raise
        others = ("WorkerID", "Source", "AnnotationTime")
        needed = ("VideoID", "Start", "End", "Language", "Description")
        for row in files.read_csv(files.find(folder, table), needed, others):
            if row["Language"] == "English" and row["Description"].strip():
                captions[f"{row['VideoID']}_{row['Start']}_{row['End']}"].append(row["Description"].strip())
        return captions
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, caption = line.strip().partition(" ")
        if not caption.strip():
            raise UserError(f"Expected a clip's name and a caption in each line of {path}; line {number} is {line!r}.")
        captions[name].append(caption.strip())
    return captions


def clip_names(folder: epath.Path, mapping: str) -> dict[int, str]:
    """Reads MSVD's `youtube_mapping.txt`: the clip's name and vid1, vid2, ... a line.

    Raises:
        UserError: it is missing, has other lines, or a number twice.
    """
    path = files.find(folder, mapping)
    pairs: list[tuple[int, str]] = []
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].removeprefix("vid").isdigit():
            raise UserError(
                f"Expected lines such as '-4wsuPCjDBc_5_15 vid1' in {path}; line {number} is {line!r}. Use the "
                "official file."
            )
        pairs.append((int(words[1].removeprefix("vid")), words[0]))
    files.check_unique(path, (number for number, _ in pairs), "number")
    return dict(pairs)


def _some(path: epath.Path, items: list[Item], part: str) -> list[Item]:
    if not items:
        raise UserError(f"Expected items of the split {part!r} in {path}; found none. Use the official file.")
    return items
