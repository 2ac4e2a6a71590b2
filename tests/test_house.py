"""The layout that other things rely on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_operator_is_a_folder_and_never_a_package():
    """With an `operator/__init__.py` the standard library's `operator` would be shadowed from the root."""
    assert (ROOT / "operator").is_dir()
    assert not (ROOT / "operator" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import collections, operator; print(operator.itemgetter(0)('x'))"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "x"), done.stderr


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_command_starts_without_torch():
    """A pod's first process outlives a worker that is out of memory, and an operator's image has no torch."""
    program = "import sys; from draftyard_api import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prepare" in done.stdout


def test_every_folder_of_the_readme_tree_exists():
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"## The tree\n\n```text\n(.*?)```", readme, re.DOTALL)
    assert tree, "README.md has no tree"
    named = re.findall(r"^([\w./-]+)\s{2,}", tree.group(1), re.MULTILINE)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
