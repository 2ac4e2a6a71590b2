"""DraftTrainings on an API server: their definition, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import waiting
import yaml
from api_server import ApiServer

from draftyard_api.names import API_VERSION, GROUP, KIND, PLURAL

Json = Any

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = ROOT / "crds" / "draftyard.dev_drafttrainings.yaml"
DEFINITIONS = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = f"{PLURAL}.{GROUP}"
WAIT_SECONDS = 60
RUN = "demo"
"""Of a scene."""


def path(namespace: str, name: str = "", part: str = "") -> str:
    """Where the DraftTrainings of a namespace are, or one of them, or a part of it such as `status`."""
    return "/".join(filter(None, ("apis", API_VERSION, "namespaces", namespace, PLURAL, name, part)))


def eventually(holds: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """What a call returns once it returns something. Raises TimeoutError when it does not in time."""
    return waiting.until(holds, seconds, "what a scene waits for")


def owned_by(owner: Json) -> Json:
    """What the operator writes into a child, so that it goes with its run."""
    named = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    return named | {"controller": True, "blockOwnerDeletion": True}


class Scene:
    """A namespace with one run in it."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server = server
        self.namespace = namespace

    def add_run(self, given: Json) -> Json:
        """Make the run. Returns it as it is stored."""
        metadata = {"name": RUN, "namespace": self.namespace}
        made = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": given}
        return self.server.post(path(self.namespace), made).made()

    @property
    def status(self) -> Json:
        """What the operator says of the run now."""
        return self.server.get(path(self.namespace, RUN)).made().get("status", {})


def install(server: ApiServer) -> None:
    """Install the definition, and wait until it is served."""
    server.post(DEFINITIONS, yaml.safe_load(DEFINITION.read_text())).made()
    eventually(lambda: server.get(path("default")).is_ok)
