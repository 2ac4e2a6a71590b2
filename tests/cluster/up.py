"""A control plane to try things on: `python tests/cluster/up.py`, until Ctrl-C.

It has the DraftTraining kind and every controller, but no node: `kubectl apply` and `kubectl get` answer as on any
cluster, and no container runs.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import control_plane
import trainings
from programs import NEWEST, Programs


def main() -> None:
    """Start, say how to reach it, and wait for Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="a control plane to try things on, until Ctrl-C")
    parser.add_argument("--kubernetes", metavar="VERSION", default=NEWEST, help="a folder of tests/cluster/modules")
    programs = Programs(parser.parse_args().kubernetes)
    programs.make()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="draftyard-cluster-"))
        plane = stack.enter_context(control_plane.serving(programs, Path(folder)))
        trainings.install(plane.client())
        stack.enter_context(control_plane.controllers(plane))
        print(f"export KUBECONFIG={plane.kubeconfig} PATH={programs.folder}:$PATH", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
