"""What keeps libraries of trackers to themselves: no word on the console, nothing outside a folder that goes again."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

SECRETS = {
    "wandb": ("WANDB_API_KEY",),
    "swanlab": ("SWANLAB_API_KEY",),
    "mlflow": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
"""What each library reads of its own."""
NOBODYS = ("HF_TOKEN",)
"""What no tracker needs."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
"""Of a URL."""


def allowed(tracker: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a tracker's process, without the keys of the others."""
    others = {name for other, names in SECRETS.items() if other != tracker for name in names}
    return {name: value for name, value in given.items() if name not in others and name not in NOBODYS}


def hush() -> None:
    """Let standard input be empty, and let nobody hear what goes to the standard outputs."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)


def environment(scratch: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Variables of the libraries. What says where to write is ours, everything else what was given."""
    ours = {
        "WANDB_CACHE_DIR": str(scratch / "wandb-cache"),
        "WANDB_CONFIG_DIR": str(scratch / "wandb-config"),
        "WANDB_DATA_DIR": str(scratch / "wandb-data"),
        "SWANLAB_SAVE_DIR": str(scratch / "swanlab"),
        "SWANLAB_LOG_DIR": str(scratch / "swanlab-log"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    defaults = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        **nobody_by_name(),
    }
    home = given.get("HOME", "")
    if not os.access(home, os.W_OK):
        ours["HOME"] = str(scratch)
    return {**{name: value for name, value in defaults.items() if name not in given}, **ours}


def told(error: Exception) -> str:
    """An error in a line, without what must not be read: libraries quote URLs, and headers."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    hidden = {value for name, value in os.environ.items() if SECRET_NAME.search(name.upper()) and len(value) > 3}
    for value in sorted(hidden, key=len, reverse=True):
        line = line.replace(value, "***")
    return CREDENTIALS.sub("***@", line)[:500]


def nobody_by_name() -> dict[str, str]:
    """A name for a user who has none, as in a pod with any user: libraries ask, and fail without an answer."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return {"USER": "draftyard", "LOGNAME": "draftyard"}
    return {}
