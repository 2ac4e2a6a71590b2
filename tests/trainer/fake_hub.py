"""A hub that one machine talks to: the endpoints that a commit needs, over real HTTP, with files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"  # noqa: S105


@dataclass
class Repository:
    """Files of one repository, and its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()  # noqa: S324  a commit's name


@dataclass
class FakeHub:
    """Everything that is on it; `large` names files that go by the protocol for large ones."""

    endpoint: str = ""
    large: tuple[str, ...] = ("model.safetensors",)
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    readme_errors: list[str] = field(default_factory=list)
    is_broken: bool = False
    refuses_uploads: bool = False


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: FakeHub

    def log_message(self, *_args: Any) -> None:
        """Tests are quiet."""

    # -- What is asked ----------------------------------------------------------------------------

    def do_GET(self) -> None:
        self.begin()
        path = unquote(urlsplit(self.path).path)
        if not self.may():
            return
        if path.startswith("/api/models/"):
            name, _, rest = path.removeprefix("/api/models/").partition("/tree/")
            repository = self.hub.repositories.get(name.removesuffix("/revision/main"))
            if repository is None:
                self.error(404, "RepoNotFound")
            elif rest:
                self.json([self.entry(file, content) for file, content in sorted(repository.files.items())])
            else:
                siblings = [{"rfilename": file} for file in sorted(repository.files)]
                self.json({"id": name, "sha": repository.sha, "siblings": siblings, "private": repository.private})
            return
        self.resolve(path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.body()
        self.begin()
        path = unquote(urlsplit(self.path).path)
        if not self.may():
            return
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            found = [{"message": text} for text in self.hub.readme_errors]
            self.json({"errors": found, "warnings": []}, status=400 if found else 200)
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif "/preupload/" in path:
            self.preupload(path.removeprefix("/api/models/").partition("/preupload/")[0], json.loads(body))
        elif "/commit/" in path:
            self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        elif path == "/verify":
            self.json({})
        else:
            self.error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        body = self.body()
        self.begin()
        if self.hub.refuses_uploads:
            self.error(403, "")
            return
        self.hub.stored[self.path.rpartition("/")[2]] = body
        self.answer(200, b"")

    # -- What it does -----------------------------------------------------------------------------

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repositories:
            self.error(409, "RepoExists", {"url": f"{self.hub.endpoint}/{name}"})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def preupload(self, name: str, asked: dict[str, Any]) -> None:
        files = self.hub.repositories[name].files
        answers = []
        for file in asked["files"]:
            content = files.get(file["path"])
            answer = {
                "path": file["path"], "shouldIgnore": False,
                "uploadMode": "lfs" if file["path"] in self.hub.large else "regular",
            }  # fmt: skip
            answers.append(answer if content is None else answer | {"oid": self.oid(file["path"], content)})
        self.json({"files": answers, "commitOid": self.hub.repositories[name].sha})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for wanted in asked["objects"]:
            upload = {"href": f"{self.hub.endpoint}/upload/{wanted['oid']}"}
            known = wanted["oid"] in self.hub.stored
            objects.append({**wanted, **({} if known else {"actions": {"upload": upload}})})
        self.json({"transfer": "basic", "objects": objects})

    def commit(self, name: str, body: bytes) -> None:
        repository, head = self.hub.repositories[name], {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    head = value
                case "file":
                    assert value["encoding"] == "base64"
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.files[value["path"]] = self.hub.stored[value["oid"]]
                case "deletedFile":
                    del repository.files[value["path"]]
                case other:
                    raise AssertionError(other)
        repository.commits.append(head)
        url = f"{self.hub.endpoint}/{name}/commit/{repository.sha}"
        self.json({"commitUrl": url, "commitOid": repository.sha, "success": True})

    def resolve(self, path: str) -> None:
        name, _, file = path.lstrip("/").partition("/resolve/main/")
        repository = self.hub.repositories.get(name)
        content = repository.files.get(file) if repository else None
        if repository is None or content is None:
            self.error(404, "EntryNotFound")
            return
        self.answer(
            200, content, {"ETag": f'"{self.oid(file, content)}"', "X-Repo-Commit": repository.sha},
        )  # fmt: skip

    def entry(self, file: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": file, "size": len(content), "oid": self.oid(file, content)}

    def oid(self, file: str, content: bytes) -> str:
        if file in self.hub.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324  as git names it

    # -- How it answers ---------------------------------------------------------------------------

    def body(self) -> bytes:
        """The body, also of a client that does not say its length."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def begin(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def may(self) -> bool:
        if self.hub.is_broken:
            self.error(500, "")
            return False
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.error(401, "")
        return False

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, more: dict[str, Any] | None = None) -> None:
        headers = {"Content-Type": "application/json", **({"X-Error-Code": code} if code else {})}
        self.answer(status, json.dumps({"error": code or "refused", **(more or {})}).encode(), headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub until the block ends."""
    hub = FakeHub()
    handler = type("OneHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
