"""A large object, written as it comes: pieces go up while later ones are made, and it appears when all are there."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from draftyard_trainer.storage.bucket import Bucket

PIECE_BYTES = 16 * 2**20
"""Of an upload; S3 takes 10,000 pieces, so 156 GiB are the largest object."""
IN_FLIGHT = 4
"""Pieces on their way: with the one that is filled, 80 MiB are in memory at most."""


class MultipartWriter(io.RawIOBase):
    """A file to write to. `finish` makes it visible, `abort` leaves nothing; small objects are one PUT."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self.size = 0
        self._bucket = bucket
        self._key = key
        self._piece = bytearray()
        self._upload: str | None = None
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="upload")
        self._sent: deque[Future[dict[str, Any]]] = deque()
        self._pieces: list[dict[str, Any]] = []
        self._started = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes; full pieces are sent, and at most four are on their way."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        while len(view):
            room = PIECE_BYTES - len(self._piece)
            self._piece += view[:room]
            view = view[room:]
            if len(self._piece) == PIECE_BYTES:
                self._send()
        return memoryview(data).nbytes

    def _send(self) -> None:
        """Start to send the piece that is full."""
        if self._upload is None:
            made = self._bucket.call(
                "writing",
                self._key,
                lambda: self._bucket.client.create_multipart_upload(Bucket=self._bucket.name, Key=self._key),
            )
            self._upload = str(made["UploadId"])
        while len(self._sent) >= IN_FLIGHT:
            self._pieces.append(self._sent.popleft().result())
        self._started += 1
        self._sent.append(self._threads.submit(self._send_piece, self._started, bytes(self._piece)))
        self._piece.clear()

    def _send_piece(self, number: int, content: bytes) -> dict[str, Any]:
        """One piece. Returns how the end of the upload names it."""
        client, where = self._bucket.client, {"Bucket": self._bucket.name, "Key": self._key, "UploadId": self._upload}
        made = self._bucket.call(
            "writing", self._key, lambda: client.upload_part(**where, PartNumber=number, Body=content)
        )
        return {"ETag": made["ETag"], "PartNumber": number}

    def finish(self) -> None:
        """Make the object visible. Raises ConnectionError when the store has another size than was written."""
        if self._upload is None:
            self._bucket.put(self._key, bytes(self._piece))
        else:
            if self._piece:
                self._send()
            self._pieces += [sent.result() for sent in self._sent]
            self._bucket.call("writing", self._key, self._complete)
        self._threads.shutdown()
        found = self._bucket.head(self._key)
        if found is None or found.size != self.size:
            raise ConnectionError(f"s3://{self._bucket.name}/{self._key}: {self.size} bytes written, {found} found")

    def _complete(self) -> None:
        """End the upload. An answer that got lost leaves an object that is whole, and an upload that is gone."""
        try:
            self._bucket.client.complete_multipart_upload(
                Bucket=self._bucket.name, Key=self._key, UploadId=self._upload, MultipartUpload={"Parts": self._pieces}
            )
        except self._bucket.client.exceptions.NoSuchUpload:
            found = self._bucket.head(self._key)
            if found is None or found.size != self.size:
                raise

    def abort(self) -> None:
        """Leave nothing behind; what cannot be removed now is swept later."""
        self._threads.shutdown(cancel_futures=True)
        if self._upload is not None:
            where = {"Bucket": self._bucket.name, "Key": self._key, "UploadId": self._upload}
            self._bucket.call("deleting", self._key, lambda: self._bucket.client.abort_multipart_upload(**where))
