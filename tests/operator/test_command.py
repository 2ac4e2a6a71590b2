"""The verb `draftyard operator`: its arguments, its imports, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from kopf._core.engines import peering
from live import play
from world import NAMESPACE, spec

from draftyard_api import cli
from draftyard_api.exit_codes import ExitCode
from draftyard_operator import command
from draftyard_operator.testing.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIG = "trainerImage: registry.example/trainer@sha256:00\nresyncSeconds: 5\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_the_entry_point_is_the_verb():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["draftyard.commands"]
    module, _, name = points["operator"].partition(":")
    assert getattr(import_module(module), name) is command.operator
    assert cli.EXTRAS["operator"] == "operator"


def test_the_operator_starts_without_the_trainer(config):
    """With `pip install draftyard[operator]` there is no torch; importing it would also take a gigabyte."""
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'draftyard_trainer'): sys.modules[name] = None\n"
        "from draftyard_operator import command\n"
        f"code = command.operator(['--config', {str(config)!r}, '--kubeconfig', '/nowhere'])\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BAD_TASK, done.stderr
    assert "--kubeconfig: given /nowhere, which is no file" in done.stderr


def test_a_user_without_a_name_may_run_it(config, monkeypatch):
    """In a pod the user is a number: kopf names itself after the user, and would end where there is no name."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 123456)
    with pytest.raises(KeyError):
        peering.detect_own_id(manual=False)
    monkeypatch.setenv("USER", "")
    assert command.operator(["--config", str(config), "--kubeconfig", "/nowhere"]) == ExitCode.BAD_TASK
    assert peering.detect_own_id(manual=False).startswith("draftyard@")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "trainerImage: Field required"),
        ("trainerImage: a\nresync: 5\n", "resync: Extra inputs are not permitted"),
        ("{", "accepted: YAML"),
    ],
)
def test_a_wrong_config_is_one_clear_error(config, capsys, text, told):
    config.write_text(text)
    assert command.operator(["--config", str(config)]) == ExitCode.BAD_TASK
    error = capsys.readouterr().err
    assert str(config) in error
    assert told in error


def test_a_config_that_is_not_there_is_told(tmp_path, capsys):
    assert command.operator(["--config", str(tmp_path / "none.yaml")]) == ExitCode.BAD_TASK
    assert "No such file" in capsys.readouterr().err


def test_outside_a_cluster_a_kubeconfig_is_asked_for(config, monkeypatch, capsys):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(command.logs, "configure", lambda: None)
    assert command.operator(["--config", str(config)]) == ExitCode.BAD_TASK
    assert "--kubeconfig FILE is needed" in capsys.readouterr().err


def test_namespaces_of_the_command_go_before_those_of_the_config(config, monkeypatch):
    config.write_text(CONFIG + "watchNamespaces: [a, b]\n")
    seen = []

    class Process:
        def __init__(self, setup):
            seen.append(setup)

        async def run(self):
            return None

    monkeypatch.setattr(command, "Process", Process)
    monkeypatch.setattr(command.logs, "configure", lambda: None)
    assert command.operator(["--config", str(config)]) == ExitCode.OK
    assert command.operator(["--config", str(config), "--namespace", "c", "d"]) == ExitCode.OK
    assert [one.namespaces for one in seen] == [("a", "b"), ("c", "d")]
    assert (seen[0].metrics_port, seen[0].health_port, seen[0].kubeconfig) == (9090, 8081, None)


def test_sigterm_ends_the_process_in_time_with_json_lines_only(config, tmp_path):
    async def story(scene):
        run = "import sys; from draftyard_operator import command; sys.exit(command.operator(sys.argv[1:]))"
        ports = ["--metrics-port", str(free_port()), "--health-port", str(free_port())]
        given = ["--config", str(config), "--kubeconfig", str(scene.kubeconfig), "--namespace", NAMESPACE, *ports]
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", run, *given, stderr=asyncio.subprocess.PIPE, env=environment
        )
        try:
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until_over("demo")
            process.send_signal(signal.SIGTERM)
            _, told = await asyncio.wait_for(process.communicate(), 30)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == ExitCode.OK, told
        lines = [json.loads(line) for line in told.splitlines()]
        assert {line["name"] for line in lines if line.get("action") == "create"} == {"demo"}

    play(story, tmp_path)
