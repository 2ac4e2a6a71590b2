"""A cluster with Kueue's part played, and the operator, to try things on until Ctrl-C:

    PYTHONPATH=tests/cluster:tests/operator python tests/kueue/up.py --pods 1

No container runs: `train` goes on until its pod is deleted, the other stages end at once, with the results of a test.
The queue `gpus` has a quota of pods.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import control_plane
import rig
import scripts
from programs import NEWEST, TRAINING, Programs

from draftyard_api.names import Stage


def main() -> None:
    """Start, say how to reach it, and wait for Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="a cluster behind a queue to try things on, until Ctrl-C")
    parser.add_argument("--pods", type=int, default=4, metavar="N", help="quota of the queue gpus (4)")
    quota = parser.parse_args().pods
    programs = Programs(NEWEST)
    programs.make()
    TRAINING.make()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="draftyard-kueue-") as folder,
        control_plane.serving(programs, Path(folder)) as plane,
        rig.played(plane) as everything,
    ):
        everything.node.script, everything.node.on_term = scripts.works(Stage.TRAIN), scripts.saves
        everything.kueue.quotas["gpus"] = quota
        print(f"export KUBECONFIG={plane.kubeconfig} PATH={programs.folder}:$PATH", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
