"""An image of one program that links nothing, as an archive that `ctr images import` reads. No builder is needed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NAME = "io.containerd.image.name"


def write(program: Path, image: str, archive: Path) -> None:
    """Write the archive of an image whose one file is the program, and its entrypoint."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        found = tarfile.TarInfo(program.name)
        found.size, found.mode = program.stat().st_size, 0o755
        with program.open("rb") as opened:
            files.addfile(found, opened)
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    def document(kind: str, content: dict[str, Any]) -> dict[str, Any]:
        return blob(kind, json.dumps(content).encode())

    packed = blob(LAYER, layer.getvalue())
    config = document(
        CONFIG,
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": "10001:10001"},
            "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
        },
    )
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [packed]}
    index = {"schemaVersion": 2, "manifests": [document(MANIFEST, content) | {"annotations": {NAME: image}}]}
    blobs |= {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    with tarfile.open(archive, "w") as out:
        for name, found_bytes in blobs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(found_bytes)
            out.addfile(entry, io.BytesIO(found_bytes))
