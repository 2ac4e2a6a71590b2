"""Kill runs at random, from seeds, and compare their ends with runs that nobody disturbs.

    python tests/chaos/chaos.py --runs 10 --out build/chaos --page docs/reliability.md

Runs that have a record are not run again, so a larger number goes on where a smaller one stopped, and a command that
was cut off goes on too. Records are of the code that made them: another trainer begins anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import chaos_report
import minio
from chaos_run import ChaosRun, Record, written
from chaos_world import ROOT, Buckets, World
from disturbances import FEWEST_KILLS, Script, draw
from faults import proxied

PACKAGES = ("api/draftyard_api", "trainer/draftyard_trainer", "tests/chaos")


def main() -> int:
    """Run what has no record yet, then report. Returns 0 when it measured, whatever came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="seeds 1 to this number")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, each with an S3 server of its own")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "chaos")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    # where clients of this process and of the runs look for their keys
    os.environ |= {"AWS_ACCESS_KEY_ID": minio.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": minio.SECRET_KEY}
    code = hash_of_code()
    folder = options.out.resolve() / code
    world = World.make(folder)
    files = {seed: folder / f"{seed}.json" for seed in range(1, options.runs + 1)}
    go_on([seed for seed, file in files.items() if not file.exists()], world, options.parallel)
    records = [json.loads(file.read_text()) for file in files.values()]
    chaos_report.write(options.page, records, code, (options.runs, FEWEST_KILLS))
    return 0


def hash_of_code() -> str:
    """Of everything that decides how a run ends."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def go_on(seeds: Sequence[int], world: World, parallel: int) -> None:
    """Run what has no record, some at a time."""
    # one script of each kind: runs at the same time must not both make what they are compared with
    kinds = {(script.mode, script.regenerates, script.storage): script for script in map(draw, seeds)}
    for script in kinds.values():
        with place_of(script, world) as there:
            world.undisturbed(script.mode, script.regenerates, there)
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda seed: run(seed, world), seeds))


@contextmanager
def place_of(script: Script, world: World) -> Iterator[Buckets | None]:
    """An S3 server with a proxy in front of it, new and empty, where a run is to be in a bucket."""
    if script.storage != "bucket":
        yield None
        return
    if not minio.program().exists():
        sys.exit("the S3 server is not there: `make s3-server` makes it")
    with (
        TemporaryDirectory(dir=world.folder, prefix="minio-") as data,
        minio.started(Path(data)) as server,
        proxied(server.endpoint) as proxy,
    ):
        yield Buckets(server, proxy)


def run(seed: int, world: World) -> None:
    """One seed, and its record."""
    script = draw(seed)
    print(f"{script.name}: {len(script.disturbances)} disturbances", flush=True)
    with place_of(script, world) as there:
        undisturbed = world.undisturbed(script.mode, script.regenerates, there)
        record = ChaosRun(script, world, undisturbed, there).go()
    print(f"seed {seed}: {told(record)}", flush=True)
    staged = world.folder / f"{seed}.json.new"
    staged.write_text(json.dumps(written(record), indent=1))
    staged.rename(world.folder / f"{seed}.json")


def told(record: Record) -> str:
    """How it ended, in a line."""
    return (
        f"{record.kills} kills, {len(record.codes)} attempts, {record.seconds:.0f} s; exit codes {record.codes}; "
        f"samples lost {record.lost}, doubled {record.doubled}; weights differ by {record.difference}; "
        f"manifest differs in {record.manifest}; partial {record.partial}; stuck {record.stuck}"
    )


if __name__ == "__main__":
    sys.exit(main())
