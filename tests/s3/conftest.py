"""One S3 server for each worker; a bucket for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import minio
import pytest
from faults import Proxy, proxied

from draftyard_api.schema import S3Access
from draftyard_trainer.storage import bucket as buckets
from draftyard_trainer.storage.bucket import Bucket
from draftyard_trainer.storage.s3 import S3Store


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[minio.Server]:
    if not minio.program().exists():
        pytest.skip("the S3 server is not there: `make s3-server` makes it")
    with minio.started(tmp_path_factory.mktemp("minio")) as running:
        yield running


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pod finds in its environment."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", minio.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", minio.SECRET_KEY)


@pytest.fixture
def access(server: minio.Server, credentials: None) -> S3Access:
    return S3Access(endpoint=server.endpoint)


@pytest.fixture
def bucket(access: S3Access) -> Bucket:
    """A new one, empty."""
    made = Bucket.of(f"bucket-{secrets.token_hex(6)}", access, "workspace")
    made.client.create_bucket(Bucket=made.name)
    return made


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path) -> S3Store:
    return S3Store(bucket, "team/workspace", tmp_path / "downloads")


@pytest.fixture
def proxy(server: minio.Server) -> Iterator[Proxy]:
    with proxied(server.endpoint) as running:
        yield running


@pytest.fixture
def shaky(proxy: Proxy, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The same bucket through the proxy; nobody waits between tries."""
    monkeypatch.setattr(buckets, "ATTEMPTS", 1)
    monkeypatch.setattr(buckets, "READ_SECONDS", 1)
    client = buckets.connect(S3Access(endpoint=proxy.endpoint), "workspace")
    return S3Store(Bucket(client, bucket.name, sleep=lambda _seconds: None), "team/workspace", tmp_path / "shaky")
