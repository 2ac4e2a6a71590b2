"""Both images with buildah, each with its bill of materials: `python images/build.py [--gpu none] [IMAGE ...]`.

Without BASE_IMAGE in the environment the base is a Debian made by debootstrap, so that no registry is needed. The
images stay in buildah's storage, for `buildah push`; archives and bills lie in `build/images`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "images"
IMAGES = ("operator", "trainer")
BASE = "localhost/draftyard-base:bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
UNUSED = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists",
    "var/log",
)  # fmt: skip
"""Folders of a Debian that no container reads."""
NEEDED = {"buildah": "buildah", "debootstrap": "debootstrap"}
MIB = 2**20


def main() -> None:
    """Build what is named, or both, and say how large each is."""
    parser = argparse.ArgumentParser(description="images of the operator and the trainer")
    parser.add_argument("images", nargs="*", default=IMAGES, metavar="IMAGE", help=", ".join(IMAGES))
    parser.add_argument("--gpu", choices=("cuda", "none"), default="cuda", help="none: for tests on a CPU")
    parser.add_argument("--archive", action="store_true", help="write what `ctr images import` reads, too")
    given = parser.parse_args()
    if missing := [package for program, package in NEEDED.items() if shutil.which(program) is None]:
        sys.exit(f"not there: {', '.join(missing)}; `apt-get install {' '.join(missing)}` brings it")
    OUT.mkdir(parents=True, exist_ok=True)
    base = os.environ.get("BASE_IMAGE") or debian()
    for name in given.images:
        if name not in IMAGES:
            sys.exit(f"given {name}; accepted: {', '.join(IMAGES)}")
        build(name, base, given.gpu)
        # First the archive: once a layer was compressed, buildah writes it compressed everywhere.
        if given.archive:
            archive(name)
        report(name)


def tag(name: str) -> str:
    """The image's name, with the version of the code."""
    version = (ROOT / "api" / "draftyard_api" / "__init__.py").read_text().partition('__version__ = "')[2]
    return f"localhost/draftyard-{name}:{version.partition(chr(34))[0]}"


def buildah(*arguments: str | Path) -> str:
    """Run buildah. Raises subprocess.CalledProcessError; what it says about it is on the terminal."""
    # Where containers may not be nested, a build needs no more than a changed root.
    environment = {"BUILDAH_ISOLATION": "chroot", **os.environ}
    command = ["buildah", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def debian() -> str:
    """A small Debian with Python, made once. Needs root, as debootstrap does."""
    if BASE not in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        with tempfile.TemporaryDirectory(dir=OUT) as folder:
            made = Path(folder) / "root"
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(made)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for unused in UNUSED:
                shutil.rmtree(made / unused)
                (made / unused).mkdir()
            container = buildah("from", "scratch")
            buildah("copy", "--quiet", container, made, "/")
            buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


def build(name: str, base: str, gpu: str) -> None:
    """One image, and its bill of materials beside it."""
    arguments = [
        "build",
        "--quiet",
        "--layers",
        "--file",
        f"images/{name}/Dockerfile",
        "--build-arg",
        f"BASE_IMAGE={base}",
    ]
    if name == "trainer":
        arguments += ["--build-arg", f"GPU={gpu}"]
    if certificates := os.environ.get("PIP_CERT"):
        arguments += ["--volume", f"{certificates}:{certificates}:ro", "--build-arg", f"PIP_CERT={certificates}"]
    buildah(*arguments, "--tag", tag(name), ".")
    container = buildah("from", "--pull-never", buildah(*arguments, "--target", "bill", "."))
    try:
        mounted = Path(buildah("mount", container))
        shutil.copy(mounted / "bill.json", OUT / f"{name}.cdx.json")
    finally:
        buildah("rm", container)


def report(name: str) -> None:
    """Say how large the image is, as a registry holds it and as a disk does."""
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        buildah("push", "--quiet", tag(name), f"oci:{folder}/image")
        blobs = Path(folder) / "image" / "blobs"
        size = sum(file.stat().st_size for file in blobs.rglob("*") if file.is_file())
    parts = len(json.loads((OUT / f"{name}.cdx.json").read_text())["components"])
    print(f"{tag(name)}: {size / MIB:.0f} MiB compressed; {parts} components in {OUT / f'{name}.cdx.json'}")


def archive(name: str) -> None:
    """What `ctr images import` reads; not compressed, since that takes longer than reading more."""
    file = OUT / f"{name}.tar"
    file.unlink(missing_ok=True)
    buildah("push", "--quiet", "--disable-compression", tag(name), f"oci-archive:{file}:{tag(name)}")


if __name__ == "__main__":
    main()
