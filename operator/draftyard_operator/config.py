"""How the operator itself is set up: a file that the chart mounts, or the defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from draftyard_api.schema import Model, Name, Text

Patterns = Annotated[tuple[Text, ...], Field(max_length=256)]


class OperatorConfig(Model):
    """What all runs of one operator share, and what their authors may choose."""

    trainer_image: Text
    """Image of every stage's pod, unless a run names an allowed one."""
    gpu_resource: Annotated[str, Field(max_length=253)] = "nvidia.com/gpu"
    """Resource that counts GPUs. Empty: no device is asked for, and the numbers count processes."""
    allowed_images: Patterns = ()
    """Further images that a run may name; `*` matches any text."""
    allowed_service_accounts: Patterns = ()
    """ServiceAccounts that a run may name; `*` matches any text."""
    resync_seconds: Annotated[int, Field(ge=5, le=3600)] = 60
    """Every run is looked at at least this often, up to twice of it."""
    max_parallelism: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Upper bound of hiddenStates.parallelism."""
    watch_namespaces: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    """Namespaces that are watched; empty: all."""
    fs_group: Annotated[int, Field(ge=1)] | None = 10001
    """Group that owns the volumes of pods which name none; null where the cluster assigns one (OpenShift)."""
    pytorch_jobs: bool = True
    """Train as PyTorchJobs where the kind is served; off: none is watched, listed or made."""
    read_workloads: bool = False
    """Ask Kueue's Workloads why a run waits; needs the right to list them."""

    def allows_image(self, image: str) -> bool:
        """Whether a run may name this image."""
        return image == self.trainer_image or matches(image, self.allowed_images)

    def allows_service_account(self, name: str) -> bool:
        """Whether a run may name this ServiceAccount."""
        return matches(name, self.allowed_service_accounts)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits: nothing but `*` is special, as in the admission policy of the chart."""
    return any(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) for pattern in patterns)


def load(path: Path) -> OperatorConfig:
    """Read the file. Raises ValueError naming every field that is wrong."""
    try:
        # JSON mode: there a list is a tuple, and nothing else is taken for what it is not
        return OperatorConfig.model_validate_json(_json(path))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors())
        raise ValueError(f"{path}: {wrong}") from error


def _json(path: Path) -> str:
    try:
        return json.dumps(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; accepted: a YAML file with trainerImage") from error
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}; accepted: YAML") from error
