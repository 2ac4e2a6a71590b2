"""The pages as tests read them: their blocks of code, links, headings and words in backticks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from draftyard_api import crd

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def files(name):
    """Files of the repository by the end of their name; what was built or installed is not looked into."""
    for folder, below, found in os.walk(ROOT):
        below[:] = sorted(one for one in below if not one.startswith(".") and one not in ("build", "node_modules"))
        yield from (Path(folder, one) for one in sorted(found) if one.endswith(name))


READMES = list(files("README.md"))
TEXTS = [*PAGES, *READMES]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
QUOTED = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    language: str
    text: str

    @property
    def place(self) -> str:
        """For the names of tests."""
        line = self.page.read_text().split(self.text)[0].count("\n")
        return f"{self.page.relative_to(ROOT)}:{line}"


def blocks(language):
    """All blocks of a language, in all texts."""
    return [
        Block(page, language, text)
        for page in TEXTS
        for found, text in FENCE.findall(page.read_text())
        if found == language
    ]


def prose(page):
    """A text without its blocks of code."""
    return FENCE.sub("", page.read_text())


def anchors(page):
    """Anchors of a page's headings, as MyST and GitHub make them."""
    found = []
    for heading in HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


SCHEMA = crd.root_schema()


def node(path):
    """The schema of a path below spec or status, such as spec.train.epochs; None where there is no such field."""
    found = SCHEMA
    for name in path.split("."):
        found = found.get("items", found)
        if found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found:
            return found
        found = found.get("properties", {}).get(name)
        if found is None:
            return None
    return found


SPEC_BLOCKS = tuple(SCHEMA["properties"]["spec"]["properties"])
FILES = ("py", "md", "json", "jsonl", "yaml", "txt", "safetensors")


def status_paths(text):
    """Words in backticks that look like fields of a status."""
    for path in re.findall(r"`(status(?:\.\w+)+)`", text):
        if path.rpartition(".")[2] not in FILES:
            yield path


def field_paths(text):
    """Words in backticks that look like fields of a spec: hiddenStates.codec, train.pod.env."""
    for quoted in QUOTED.findall(text):
        for word in re.findall(r"(?<![\w./-])([a-z][A-Za-z0-9]*(?:\.[a-zA-Z][A-Za-z0-9]*)+)(?![\w/(-])", quoted):
            names = word.removeprefix("spec.").split(".")
            if names[0] in SPEC_BLOCKS and names[-1] not in FILES:
                yield ".".join(names)
