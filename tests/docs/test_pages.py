"""Every page can be found, and every link, command, field and snippet in it is good."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from typing import Annotated

import pages
import pytest
import yaml
from pages import DOCS, PAGES, ROOT, TEXTS
from pydantic import TypeAdapter

from draftyard_api import cli, document, names
from draftyard_api.schema import Model
from draftyard_api.spec import DraftTrainingSpec

sys.path.insert(0, str(DOCS))
import navigation

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9][\w.-]*):", MAKEFILE, re.MULTILINE))
VERBS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["draftyard.commands"]


def ids(texts):
    return [pytest.param(text, id=str(text.relative_to(ROOT))) for text in texts]


# -- Where pages are ------------------------------------------------------------------------------------


def test_every_page_has_a_place_in_the_navigation():
    placed = {name for _, names in navigation.SECTIONS for name in names} | {navigation.FRONT}
    missing = [page.name for page in PAGES if page.stem not in placed]
    assert missing == [], f"{missing}: name them in SECTIONS of docs/navigation.py, where a reader would look for them"


def test_every_page_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES if page.stem != navigation.FRONT and f"(docs/{page.name})" not in readme]
    assert missing == [], f"{missing}: add a line to the list `More` of README.md: a link, and what the page answers"


def test_a_page_without_a_place_is_shown_last_and_a_place_without_a_page_is_left_out():
    found = navigation.sections(["index", "first-run", "new-page"])
    assert found == [("Start", ["first-run"]), (navigation.REST, ["new-page"])]
    assert ":caption: Start\n\nfirst-run\n```" in navigation.toctrees(["index", "first-run"])


@pytest.mark.parametrize("page", ids(TEXTS))
def test_links_lead_somewhere(page):
    for link in pages.LINK.findall(pages.prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), f"{link}: there is no {file}"
        if anchor:
            assert anchor in pages.anchors(to), f"{link}: {to.name} has no such heading"


# -- What pages say -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ids(TEXTS))
def test_every_field_that_a_page_names_is_one(page):
    """Of a spec; values of the chart and files have other names."""
    unknown = [path for path in pages.field_paths(pages.prose(page)) if pages.node(f"spec.{path}") is None]
    unknown += [path for path in pages.status_paths(pages.prose(page)) if pages.node(path) is None]
    assert unknown == []


@pytest.mark.parametrize("page", ids(TEXTS))
def test_every_variable_that_a_page_names_is_one(page):
    known = {value for value in vars(names).values() if isinstance(value, str)} | variables_of_tests()
    assert set(re.findall(r"\bDRAFTYARD_[A-Z]+(?:_[A-Z]+)*\b", page.read_text())) <= known


def variables_of_tests():
    """Those that only tests read."""
    return {
        name
        for path in pages.files(".py")
        if path.relative_to(ROOT).parts[0] in ("tests", "bench")
        for name in re.findall(r'"(DRAFTYARD_\w+)"', path.read_text())
    }


@pytest.mark.parametrize("page", ids(TEXTS))
def test_commands_in_the_text_exist(page):
    text = pages.prose(page)
    assert set(re.findall(r"`draftyard ([a-z]+)", text)) <= {*VERBS, "plan"}
    assert set(re.findall(r"`make ([a-z0-9.-]+)", text)) <= TARGETS


# -- Snippets -------------------------------------------------------------------------------------------


def params(language):
    return [pytest.param(block, id=block.place) for block in pages.blocks(language)]


@pytest.mark.parametrize("block", params("yaml"))
def test_a_yaml_block_is_good(block):
    """A DraftTraining is checked as a whole, a part of a spec field by field; the rest only parses."""
    for found in yaml.safe_load_all(block.text):
        if isinstance(found, dict) and found.get("kind") == "DraftTraining":
            document.check(found)
            continue
        part = found.get("spec", found) if isinstance(found, dict) and "apiVersion" not in found else {}
        if isinstance(part, dict) and set(part) <= set(pages.SPEC_BLOCKS):
            check_part(DraftTrainingSpec, part)


def check_part(model, part):
    """Every field that is there is one, with a value that is accepted; what is missing is not asked for."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    assert set(part) <= set(fields), f"given {sorted(set(part) - set(fields))}; accepted: {', '.join(fields)}"
    for name, value in part.items():
        if isinstance(value, dict):
            inner = inner_model(fields[name].annotation)
            if inner is not None:
                check_part(inner, value)
                continue
        # through JSON, as the file is read: there a list is a tuple
        bounds = fields[name].metadata
        kind = Annotated[fields[name].annotation, *bounds] if bounds else fields[name].annotation
        TypeAdapter(kind).validate_json(json.dumps(value))


def inner_model(annotation):
    """The model in the type of a field."""
    for one in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(one, type) and issubclass(one, Model):
            return one
    return None


@pytest.mark.parametrize("block", params("python"))
def test_a_python_block_parses(block):
    ast.parse(block.text)


@pytest.mark.parametrize("block", params("json"))
def test_a_json_block_parses(block):
    for line in block.text.splitlines():
        json.loads(line)


@pytest.mark.parametrize("block", params("promql"))
def test_a_query_asks_for_series_that_there_are(block):
    metrics = (DOCS / "metrics.md").read_text()
    for name in re.findall(r"\bdraftyard_\w+", block.text):
        assert f"| `{name}` |" in metrics, name


def commands(text):
    """Words of each command, lines that go on joined, comments gone."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.mark.parametrize("block", params("bash"))
def test_commands_exist(block):
    for words in commands(block.text):
        at = next((place for place, word in enumerate(words) if word.rpartition("/")[2] == "draftyard"), None)
        if words[0] == "make":
            assert {word for word in words[1:] if re.fullmatch(r"[a-z0-9.-]+", word)} <= TARGETS, words
        elif at is not None and words[0] != "helm" and words[0] != "kubectl":
            check_verb(words[at + 1], words[at + 2 :])


def check_verb(verb, arguments):
    """The verb is one, and has the options that it is given."""
    assert verb in VERBS, f"draftyard {verb}: accepted: {', '.join(VERBS)}"
    given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert given <= options(verb), f"draftyard {verb}: it has {', '.join(sorted(options(verb)))}"


KNOWN: dict[str, set[str]] = {}


def options(verb):
    """Options of a verb, as its help says; asked for once."""
    if verb not in KNOWN:
        said = io.StringIO()
        function = cli.find_verb(verb)
        assert function is not None
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            function(["--help"])
        for below in re.findall(r"^  ([a-z]+)$", said.getvalue(), re.MULTILINE):  # verbs of a verb
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                function([below, "--help"])
        KNOWN[verb] = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said.getvalue()))
    return KNOWN[verb]


# -- What is written by scripts ---------------------------------------------------------------------------


def test_written_parts_are_up_to_date():
    done = subprocess.run(
        [sys.executable, DOCS / "scripts/write.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# -- Pictures -------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("picture", ids(sorted((DOCS / "pictures").glob("*.svg"))))
def test_a_picture_reads_on_any_background(picture):
    """All its text lies in boxes that it brings along; lines differ from white and from black."""
    root = ET.fromstring(picture.read_text())  # noqa: S314  our own file
    boxes = [
        ([float(rect.get(name)) for name in ("x", "y", "width", "height")], rect.get("fill"))
        for rect in root.iter(f"{SVG}rect")
    ]
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.get("x")), float(text.get("y"))
        under = [fill for (left, top, wide, high), fill in boxes if left < x < left + wide and top < y < top + high]
        assert under, f"{text.text}: no box is behind it"
        assert contrast(under[-1], text.get("fill")) >= 4.5, text.text
        widest = max(wide for (left, top, wide, high), _ in boxes if left < x < left + wide and top < y < top + high)
        assert len(text.text) * float(text.get("font-size")) * 0.58 <= widest + 8, f"{text.text}: wider than its box"
    for path in root.iter(f"{SVG}path"):
        if path.get("stroke"):
            assert min(contrast(path.get("stroke"), ground) for ground in ("#ffffff", "#131416")) >= 3
    assert root.find(f"{SVG}title") is not None
    used = [page.name for page in PAGES if f"pictures/{picture.name}" in page.read_text()]
    assert used, f"{picture.name}: no page shows it"
