"""A bucket: every call to S3 goes through here, is tried again while that may help, and ends in words.

The client tries a request again by itself; what comes on top is for a store that is away for a minute or two, and for
bodies that break off while they are read.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from urllib3.exceptions import HTTPError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import S3_CREDENTIALS, S3_HOLDERS
from draftyard_api.reasons import Reason
from draftyard_api.schema import S3Access

Holder = Literal["workspace", "target", "data", "draft"]
FIELDS = {"workspace": "workspace.s3", "target": "target.s3", "data": "data.source.s3", "draft": "draft.s3"}
"""Where a user said how it is reached."""
CONNECTIONS = 64
"""Requests at the same time: a bucket answers slowly, but many."""
ATTEMPTS = 3
"""Of one request by the client, within seconds."""
WAITS_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Before each further try: two minutes, in which a store restarts."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
TRANSIENT = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "RequestTimeTooSkewed")
T = TypeVar("T")


def connect(access: S3Access | None, holder: Holder) -> Any:
    """A client for one location. Credentials come from the environment, else from the pod's own identity.

    Every holder may have its own, under names of its own; those of the workspace are the plain ones.
    """
    access = access or S3Access()
    key, secret, token = (
        os.environ.get(f"{S3_HOLDERS[holder]}{name}") or os.environ.get(name) for name in S3_CREDENTIALS
    )
    return boto3.client(
        "s3",
        endpoint_url=access.endpoint,
        region_name=access.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
            # stores other than Amazon's refuse what its client adds unasked; records carry checksums of their own
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if access.endpoint else "auto"},
        ),
    )


@dataclass(frozen=True)
class Entry:
    """An object in a listing."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Bucket:
    """One bucket as one holder reaches it. Safe to use from many threads."""

    client: Any = field(repr=False)
    name: str
    holder: Holder = "workspace"
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, name: str, access: S3Access | None, holder: Holder) -> Bucket:
        """Connect. Nothing is sent yet."""
        return cls(connect(access, holder), name, holder)

    def call(self, what: str, key: str, work: Callable[[], T]) -> T:
        """Do `work`, again while that may help.

        Raises FileNotFoundError for an absent object; Failure: DENIED for credentials and buckets, UNAVAILABLE when
        the store stays out of reach.
        """
        for wait in (*WAITS_SECONDS, None):
            try:
                return work()
            except ClientError as error:
                self._refuse(error, what, key)
                problem = code_of(error)
            except (NoCredentialsError, PartialCredentialsError) as error:
                raise self._denied(f"{what} {key}", "no credentials") from error
            except (BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
                problem = type(error).__name__
            if wait is not None:
                # many pods must not come back at the same moment
                self.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  not for secrets
        message = (
            f"{FIELDS[self.holder]}: s3://{self.name} is out of reach ({what} {key}: {problem}); check its endpoint "
            "and the network"
        )
        raise Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)

    def _refuse(self, error: ClientError, what: str, key: str) -> None:
        """Raise what no further try would change."""
        code, status = code_of(error), int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "NoSuchBucket":
            raise self._denied(f"{what} {key}", "there is no such bucket") from error
        if status == 404:
            raise FileNotFoundError(2, "no such object", f"s3://{self.name}/{key}") from error
        if code not in TRANSIENT and 400 <= status < 500 and status not in (408, 409, 429):
            raise self._denied(f"{what} {key}", code) from error

    def _denied(self, what: str, why: str) -> Failure:
        """An answer that credentials, or a bucket, would change. The service's own text may hold a key id."""
        prefix = S3_HOLDERS[self.holder]
        message = (
            f"{FIELDS[self.holder]}: s3://{self.name} refuses access ({what}: {why}); check the bucket's name and "
            f"region, and the Secret with {prefix}{S3_CREDENTIALS[0]} and {prefix}{S3_CREDENTIALS[1]}"
        )
        return Failure(ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, message)

    # -- Objects ---------------------------------------------------------------------------------

    def head(self, key: str) -> Entry | None:
        """Size and version of an object; None when it is absent."""
        try:
            found = self.call("looking at", key, lambda: self.client.head_object(Bucket=self.name, Key=key))
        except FileNotFoundError:
            return None
        return Entry(key, int(found["ContentLength"]), str(found["ETag"]).strip('"'))

    def get(self, key: str, first: int = 0, length: int | None = None) -> bytes:
        """An object, or `length` bytes of it, fewer at the end. Raises FileNotFoundError."""
        if length == 0:
            return b""
        span = {} if length is None else {"Range": f"bytes={first}-{first + length - 1}"}

        def read() -> bytes:
            try:
                answer = self.client.get_object(Bucket=self.name, Key=key, **span)
            except ClientError as error:
                # asked for what lies behind the end
                if code_of(error) in ("InvalidRange", "416"):
                    return b""
                raise
            content: bytes = answer["Body"].read()
            if len(content) != int(answer["ContentLength"]):
                raise ConnectionError("the body broke off")
            return content

        return self.call("reading", key, read)

    def put(self, key: str, content: bytes) -> None:
        """Write an object; it is there whole, or not at all."""
        self.call("writing", key, lambda: self.client.put_object(Bucket=self.name, Key=key, Body=content))

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        self.call("deleting", key, lambda: self.client.delete_object(Bucket=self.name, Key=key))

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose keys begin with `prefix`, in order."""
        token: dict[str, str] = {}
        while True:
            listed = partial(self.client.list_objects_v2, Bucket=self.name, Prefix=prefix, **token)
            page: Any = self.call("listing", prefix, listed)
            for entry in page.get("Contents", ()):
                yield Entry(str(entry["Key"]), int(entry["Size"]), str(entry["ETag"]).strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}


def code_of(error: ClientError) -> str:
    """The service's own word for what went wrong."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))
