"""What the images promise: the code is the last layer, nobody is root, pip is asked for what the project says."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ("operator", "trainer")


def last_stage(name: str) -> list[str]:
    text = (ROOT / f"images/{name}/Dockerfile").read_text()
    lines = [line for line in text.rpartition("\nFROM ")[2].splitlines() if line and not line.startswith("#")]
    return lines[1:]


@pytest.mark.parametrize("name", IMAGES)
def test_the_code_is_the_last_layer(name):
    copied = [line for line in last_stage(name) if line.startswith(("COPY", "RUN", "ADD"))]
    assert copied == [
        "COPY --from=dependencies /opt/draftyard /opt/draftyard",
        "COPY --from=project /project /opt/draftyard",
    ]


@pytest.mark.parametrize("name", IMAGES)
def test_nobody_is_root(name):
    (user,) = (line.split()[1] for line in last_stage(name) if line.startswith("USER"))
    assert int(user.partition(":")[0]) > 0, "a number, or runAsNonRoot cannot be judged"


@pytest.mark.parametrize("name", IMAGES)
def test_pip_is_asked_for_what_the_project_says(name, tmp_path):
    for file in ("images/wanted.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    done = subprocess.run(
        [sys.executable, tmp_path / "wanted.py", name], capture_output=True, text=True, check=True
    )  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout.splitlines() == [*project["dependencies"], *project["optional-dependencies"][name]]


def test_the_trainer_has_the_libraries_of_all_trackers(tmp_path):
    assert "wanted.py trainer tracking >" in (ROOT / "images/trainer/Dockerfile").read_text()
    for file in ("images/wanted.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    done = subprocess.run(
        [sys.executable, tmp_path / "wanted.py", "tracking"], capture_output=True, text=True, check=True
    )  # fmt: skip
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [line for tracker in ("wandb", "tensorboard", "swanlab", "mlflow") for line in extras[tracker]]
    assert [line for line in done.stdout.splitlines() if line in named] == named
    assert "draftyard[" not in done.stdout, "the project itself comes out of no registry"


def test_an_operator_without_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["operator"]]
    assert [name for name in asked if name.startswith(("torch", "transformers"))] == []


def test_an_image_of_one_program(tmp_path):
    """Every digest is that of the bytes behind it."""
    spec = importlib.util.spec_from_file_location("program_image", ROOT / "tests/e2e/program_image.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "tool").write_bytes(b"program")
    module.write(tmp_path / "tool", "localhost/tool:1", tmp_path / "image.tar")
    shutil.unpack_archive(tmp_path / "image.tar", tmp_path / "image", filter="data")
    blobs = tmp_path / "image/blobs/sha256"
    assert {module.hashlib.sha256(file.read_bytes()).hexdigest() for file in blobs.iterdir()} == {
        file.name for file in blobs.iterdir()
    }
    (listed,) = json.loads((tmp_path / "image/index.json").read_text())["manifests"]
    assert listed["annotations"] == {"io.containerd.image.name": "localhost/tool:1"}
    manifest = json.loads((blobs / listed["digest"].removeprefix("sha256:")).read_text())
    (layer,) = manifest["layers"]
    shutil.unpack_archive(blobs / layer["digest"].removeprefix("sha256:"), tmp_path / "root", "tar", filter="data")
    assert (tmp_path / "root/tool").read_bytes() == b"program"
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert config["config"]["Entrypoint"] == ["/tool"]
