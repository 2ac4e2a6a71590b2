"""Every example is a good document that plans, could run as it is, and says of itself what the estimator says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from draftyard_api import document, preview
from draftyard_api.exit_codes import ExitCode
from draftyard_api.targets import WELL_KNOWN, can_spread

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SIZED = [path for path in EXAMPLES if "what it takes" in path.read_text()]
COPIES = {"deepseek-v3-offline": "deepseek-ai/DeepSeek-V3"}
"""Examples whose target is a copy in a claim."""
FAMILIES = (
    "llama-3.1-8b", "llama-3.3-70b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b", "gpt-oss-20b",
    "gpt-oss-120b", "deepseek-v3", "gemma-3", "mistral", "phi-4", "ling",
)  # fmt: skip
GIB = 2**30


def spec(path):
    return document.load(path).spec


def ids(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.parametrize("path", ids(EXAMPLES))
def test_an_example_is_a_good_document(path):
    training = document.load(path)
    assert path.stem.replace(".", "-") == training.metadata.name


@pytest.mark.parametrize("path", ids(SIZED))
def test_an_example_plans(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preview, "free_bytes", lambda _workspace: 2**50)
    like = ["--like", COPIES[path.stem]] if path.stem in COPIES else []
    assert preview.plan([str(path), "--workspace", str(tmp_path), *like]) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"{spec(path).mode} plan" in out
    assert "GPU-hours" in out


def test_figures_are_those_of_the_estimator():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/figures.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_figures_that_are_out_of_date_are_told(tmp_path):
    (tmp_path / "figures.py").write_text((ROOT / "examples/figures.py").read_text())
    good = (ROOT / "examples/phi-4-online.yaml").read_text()
    (tmp_path / "phi-4-online.yaml").write_text(good.replace("epochs: 2", "epochs: 3"))
    check = [sys.executable, str(tmp_path / "figures.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "phi-4-online.yaml: figures are out of date; make figures writes them\n",
    )
    assert subprocess.run([sys.executable, str(tmp_path / "figures.py")], check=False).returncode == 0
    assert subprocess.run(check, check=False).returncode == 0


def test_every_family_and_both_modes_are_there():
    names = [path.stem for path in SIZED]
    assert [family for family in FAMILIES if not any(name.startswith(family) for name in names)] == []
    assert min(sum(name.endswith(mode) for name in names) for mode in ("-online", "-offline")) >= 5


@pytest.mark.parametrize("path", ids(SIZED))
def test_an_example_says_its_mode_and_uses_the_cluster_only(path):
    assert path.stem.endswith(f"-{spec(path).mode.lower()}")
    document.load(path, local=False)


@pytest.mark.parametrize("path", ids(SIZED))
def test_a_target_over_several_gpus_is_one_that_can_be_spread(path):
    """Only Offline and without evaluate; each GPU with whole key heads."""
    wanted = spec(path)
    if wanted.target.tensor_parallel == 1:
        return
    config = WELL_KNOWN[COPIES.get(path.stem, wanted.target.model)]
    assert (wanted.mode, wanted.evaluate) == ("Offline", None)
    assert can_spread(config, wanted.target.tensor_parallel)


@pytest.mark.parametrize("path", ids(SIZED))
def test_a_new_claim_holds_what_is_planned(path):
    """With the twentieth that a disk keeps free."""
    pvc = spec(path).workspace.pvc
    if pvc is None or pvc.claim_template is None:
        return
    size = pvc.claim_template.size
    given = float(size[:-2]) * {"Gi": GIB, "Ti": 1024 * GIB}[size[-2:]]
    lines = path.read_text().splitlines()
    needed, unit = next(line for line in lines if line.startswith("# disk")).split()[2:4]
    assert float(needed) * {"GiB": GIB, "TiB": 1024 * GIB}[unit] <= 0.95 * given


def test_examples_show_what_there_is():
    raw = [yaml.safe_load(path.read_text())["spec"] for path in SIZED]
    assert {kind for one in raw for kind in one["workspace"]} == {"pvc", "s3"}
    assert {kind for one in raw for kind in one["workspace"].get("pvc", {})} == {"claimTemplate", "existingClaim"}
    assert {tracker for one in raw for tracker in one.get("tracking", {}).get("reportTo", ())} >= {"wandb", "mlflow"}
    assert any("scheduling" in one for one in raw)
    assert any("minAcceptanceLength" in one.get("evaluate", {}) for one in raw)
