"""Kill runs at random, from seeds, and compare their ends with runs that nobody disturbs.

    python tests/chaos/chaos.py --runs 10 --out build/chaos --page docs/reliability.md

Runs that have a record are not run again, so a larger number goes on where a smaller one stopped, and a command that
was cut off goes on too. Records are of the code that made them: another trainer begins anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import chaos_report
import minio
from chaos_run import ChaosRun, Record, written
from chaos_world import ROOT, Buckets, World
from disturbances import FEWEST_KILLS, draw
from faults import proxied

PACKAGES = ("api/draftyard_api", "trainer/draftyard_trainer", "tests/chaos")


def main() -> int:
    """Run what has no record yet, then report. Returns 0 when it measured, whatever came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="seeds 1 to this number")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "chaos")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    code = hash_of_code()
    folder = options.out.resolve() / code
    world = World.make(folder)
    with buckets(folder) as there:
        for seed in range(1, options.runs + 1):
            if not (folder / f"{seed}.json").exists():
                run(seed, world, there)
    records = [json.loads((folder / f"{seed}.json").read_text()) for seed in range(1, options.runs + 1)]
    chaos_report.write(options.page, records, code, (options.runs, FEWEST_KILLS))
    return 0


def hash_of_code() -> str:
    """Of everything that decides how a run ends."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def buckets(folder: Path) -> Iterator[Buckets]:
    """An S3 server with a proxy in front of it."""
    if not minio.program().exists():
        sys.exit("the S3 server is not there: `make s3-server` makes it")
    with (
        TemporaryDirectory(dir=folder, prefix="minio-") as data,
        minio.started(Path(data)) as server,
        proxied(server.endpoint) as proxy,
    ):
        yield Buckets(server, proxy)


def run(seed: int, world: World, there: Buckets) -> None:
    """One seed, and its record."""
    script = draw(seed)
    print(f"{script.name}: {len(script.disturbances)} disturbances", flush=True)
    chaotic = ChaosRun(script, world, world.undisturbed(script.mode), there)
    record = chaotic.go()
    print(f"  {told(record)}", flush=True)
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
