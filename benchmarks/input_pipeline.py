"""How many images and clips a second does a core decode, beside a PyTorch DataLoader with Pillow and PyAV?

python benchmarks/input_pipeline.py --images=2000 --clips=200 --rounds=5

Both read the same files, decode and resize them to the same size, bilinear, and make batches of the same size: ours by
`--workers` threads, PyTorch's by as many processes. They take turns, round after round, so that the machine's mood
falls on both; the figure is the median of the rounds' ratios, of wall time and of CPU time (`_cpu`), which a busy
machine changes less. Ours also makes prompts and tokens. PyTorch's pipeline is measured as it is usually written
(`torch`), and with the decoder's own downscaling of JPEG, which ours uses (`torch_draft`). Without torch only ours is
measured. JPEG files, tar shards of the same, and MP4 files are made first.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make_photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture with edges and some noise, whose JPEG has the size of a photograph's."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 8, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def make_files(folder: Path, images: int, clips: int, shards: int = 4) -> dict[str, str]:
    """Writes the files, and returns the pattern of each kind."""
    rng = np.random.default_rng(0)
    (folder / "files").mkdir()
    encoded = []
    for _ in range(min(images, 64)):  # so many different ones; copies cost the same
        buffer = io.BytesIO()
        make_photograph(rng, 640, 480).save(buffer, "JPEG", quality=87)
        encoded.append(buffer.getvalue())
    lines = []
    for i in range(images):
        (folder / "files" / f"{i:06d}.jpg").write_bytes(encoded[i % len(encoded)])
        lines.append(json.dumps({"image": f"files/{i:06d}.jpg", "caption": "a picture"}))
    (folder / "images.jsonl").write_text("\n".join(lines))
    for s in range(shards):
        with tarfile.open(folder / f"images-{s:03d}.tar", "w") as archive:
            for i in range(s, images, shards):
                for ending, data in (("jpg", encoded[i % len(encoded)]), ("txt", b"a picture")):
                    member = tarfile.TarInfo(f"{i:06d}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    made = [write_clip(folder / "files" / f"clip{i}.mp4", rng) for i in range(min(clips, 8))]
    lines = [json.dumps({"video": f"files/{made[i % len(made)].name}", "caption": "a clip"}) for i in range(clips)]
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return {
        "jpeg": str(folder / "images.jsonl"),
        "tar": str(folder / f"images-{{000..{shards - 1:03d}}}.tar"),
        "clips": str(folder / "clips.jsonl"),
    }


def write_clip(path: Path, rng: np.random.Generator, seconds: int = 5, rate: int = 24) -> Path:
    """A moving view of a picture in H.264, or MPEG-4 where PyAV has no H.264 encoder."""
    import av

    view = np.asarray(make_photograph(rng, 640, 400))
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 480, 360, "yuv420p"
        for i in range(seconds * rate):
            window = np.ascontiguousarray(view[i % 40 : i % 40 + 360, i : i + 480])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        file.mux(stream.encode(None))
    return path


# Ours


def ours(kind: str, files: str, args: argparse.Namespace) -> Callable[[], Iterator]:
    """Returns a function that starts endless batches of the loader."""
    from vadapter.data import tasks
    from vadapter.data.order.config import LoaderConfig
    from vadapter.data.order.loader import Loader
    from vadapter.data.rows.sizes import Sizes

    name = f"bench_{kind}"
    media = "video" if kind == "clips" else "image"
    reading = {"threads": args.workers, "cache_dir": f"{args.folder}/index"}
    tasks.pairs_task(name, files, media=media, holdout=0.0, vocabulary="scenes", **reading)
    batch = args.clip_batch if kind == "clips" else args.batch
    loader = Loader(LoaderConfig(mixture=name, batch_size=batch), Sizes(args.size, args.frames, 16))
    return loader.batches


# PyTorch's


def theirs(kind: str, files: str, args: argparse.Namespace, draft: bool) -> Callable[[], Iterator]:
    """Returns a function that starts batches of a PyTorch DataLoader over the same files."""
    import torch
    from torch.utils.data import DataLoader, Dataset, IterableDataset

    torch.set_num_threads(1)
    size, folder = args.size, Path(args.folder)

    def decode(source) -> np.ndarray:
        image = Image.open(source)
        if draft:
            image.draft("RGB", (size, size))
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    def clip(path: Path) -> np.ndarray:
        import av

        with av.open(str(path)) as file:
            total = file.streams.video[0].frames
            wanted = {int((i + 0.5) * total / args.frames) for i in range(args.frames)}
            frames = (frame for i, frame in enumerate(file.decode(video=0)) if i in wanted)
            return np.stack([np.asarray(f.to_image().resize((size, size), Image.Resampling.BILINEAR)) for f in frames])

    class Files(Dataset):
        def __init__(self):
            self.lines = [json.loads(line) for line in Path(files).read_text().splitlines()]

        def __len__(self):
            return len(self.lines)

        def __getitem__(self, i):
            line = self.lines[i]
            pixels = clip(folder / line["video"]) if kind == "clips" else decode(folder / line["image"])
            return torch.from_numpy(pixels.copy()), line["caption"]

    class Shards(IterableDataset):
        def __iter__(self):
            worker: Any = torch.utils.data.get_worker_info()
            pixels = None
            for path in sorted(folder.glob("images-*.tar"))[worker.id :: worker.num_workers]:
                with tarfile.open(path) as opened:
                    archive: Any = opened
                    while (member := archive.next()) is not None:
                        data = archive.extractfile(member).read()
                        if member.name.endswith(".jpg"):
                            pixels = torch.from_numpy(decode(io.BytesIO(data)).copy())
                        else:
                            yield pixels, data.decode()

    batch = args.clip_batch if kind == "clips" else args.batch
    settings: dict[str, Any] = {
        "batch_size": batch,
        "num_workers": args.workers,
        "drop_last": True,
        "multiprocessing_context": "fork",
        "worker_init_fn": lambda _: Image.core.set_blocks_max(0),  # Pillow's default, which ours changes on import
    }
    made = DataLoader(Shards(), **settings) if kind == "tar" else DataLoader(Files(), shuffle=True, **settings)

    def endless() -> Iterator:
        while True:
            yield from made

    return endless


def cpu_seconds() -> float:
    """Returns the CPU time, user and system, of this process and its children, ended and (on Linux) running."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            # After the name in brackets; fields 14 and 15 of proc(5).
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def cost(start: Callable[[], Iterator], batch: int, count: int) -> tuple[float, float]:
    """Returns seconds and CPU seconds an example, after the first two batches, over `count` examples."""
    batches = start()
    for _ in range(2):
        next(batches)
    begun, used = time.perf_counter(), cpu_seconds()
    steps = max(count // batch - 2, 1)
    for _ in range(steps):
        next(batches)
    seconds, used = time.perf_counter() - begun, cpu_seconds() - used
    getattr(batches, "close", lambda: None)()
    return seconds / (steps * batch), used / (steps * batch)


def measure(kind: str, files: str, args: argparse.Namespace) -> dict:
    """Returns rates a core, CPU milliseconds an example, and ratios (above 1 where ours is faster) of one kind."""
    batch, count = (args.clip_batch, args.clips) if kind == "clips" else (args.batch, args.images)
    pipelines = {}
    try:
        import torch  # noqa: F401

        pipelines["torch"] = theirs(kind, files, args, draft=False)
        if kind != "clips":
            pipelines["torch_draft"] = theirs(kind, files, args, draft=True)
    except ImportError:
        pass
    pipelines["ours"] = ours(kind, files, args)
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    for _ in range(args.rounds):
        for name, start in pipelines.items():
            costs[name].append(cost(start, batch, count))
    found: dict = {}
    for name, each in costs.items():
        wall, cpu = zip(*each, strict=True)
        found[f"{name}_per_core"] = round(1 / statistics.median(wall) / args.workers, 1)
        found[f"{name}_cpu_ms"] = round(1e3 * statistics.median(cpu), 3)
    for name in costs.keys() - {"ours"}:
        for i, suffix in enumerate(("", "_cpu")):
            ratios = [theirs[i] / ours[i] for theirs, ours in zip(costs[name], costs["ours"], strict=True)]
            found[f"ours_over_{name}{suffix}"] = round(statistics.median(ratios), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="JPEG files of 640x480")
    parser.add_argument("--clips", type=int, default=200, help="clips of five seconds of 480x360")
    parser.add_argument("--size", type=int, default=224, help="pixels of the result")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--clip_batch", type=int, default=8, help="clips in a batch")
    parser.add_argument("--workers", type=int, default=2, help="threads of ours, processes of PyTorch's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="jpeg,tar,clips", help="which to measure")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = folder
        files = make_files(Path(folder), args.images, args.clips)
        results = {kind: measure(kind, files[kind], args) for kind in args.kinds.split(",")}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "workers": args.workers}
    try:
        import torch

        machine["torch"] = torch.__version__
    except ImportError:
        machine["torch"] = "not installed: only ours was measured"
    question = "examples a second and core, CPU ms an example, ratios to PyTorch's DataLoader with Pillow and PyAV"
    print(json.dumps({"question": question, "results": results, **machine}))


if __name__ == "__main__":
    main()
