"""Locations: what they are taken for, and where a process finds them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from draftyard_api import storage_uri
from draftyard_api.storage_uri import StorageUri

READ = {
    "a bare repository": ("meta-llama/Llama-3.1-8B", StorageUri("hf", "", "meta-llama/Llama-3.1-8B")),
    "a repository": ("hf://org/name", StorageUri("hf", "", "org/name")),
    "a claim": ("pvc://models/llama/8b", StorageUri("pvc", "models", "llama/8b")),
    "a bucket": ("s3://my-bucket", StorageUri("s3", "my-bucket", "")),
    "a prefix": ("s3://my-bucket/a/b.jsonl", StorageUri("s3", "my-bucket", "a/b.jsonl")),
    "an absolute file": ("file:///data/x", StorageUri("file", "", "/data/x")),
    "a relative file": ("file://chat.jsonl", StorageUri("file", "", "chat.jsonl")),
    "a plain path": ("./chat.jsonl", StorageUri("file", "", "./chat.jsonl")),
}
REFUSED = {
    "nothing": "",
    "a word": "llama",
    "three parts": "org/name/more",
    "a claim alone": "pvc://claim",
    "a claim and a slash": "pvc://claim/",
    "a claim with capitals": "pvc://Claim/path",
    "a bucket with an underscore": "s3://my_bucket/x",
    "another scheme": "gs://bucket/x",
    "a web page": "https://example.org/model",
    "a way out of a claim": "pvc://claim/../../etc",
    "a way out at the end": "pvc://claim/a/..",
    "a way out of a prefix": "s3://bucket/a/../b",
    "an empty file": "file://",
    "a space first": " org/name",
    "a line break last": "org/name\n",
}


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ.keys())
def test_read(text: str, expected: StorageUri):
    assert storage_uri.parse(text) == expected


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ.keys())
def test_written_and_read_again_it_is_the_same(text: str, expected: StorageUri):
    assert storage_uri.parse(str(expected)) == expected


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_what_is_accepted(text: str):
    with pytest.raises(ValueError, match=re.escape(f'given "{text}"; accepted: org/name, hf://org/name, pvc://')):
        storage_uri.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pvc://models/llama/8b", "file:///mnt/models/llama/8b"),
        ("file://data/chat.jsonl", "file:///runs/data/chat.jsonl"),
        ("file:///abs/chat.jsonl", "file:///abs/chat.jsonl"),
        ("./chat.jsonl", "file:///runs/chat.jsonl"),
        ("../chat.jsonl", "file:///chat.jsonl"),
        ("org/name", "hf://org/name"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
    ids=["claim", "relative", "absolute", "beside", "above", "repository", "bucket"],
)
def test_where_a_process_here_finds_it(text: str, expected: str):
    assert storage_uri.resolve(text, Path("/runs"), {"models": Path("/mnt/models")}) == expected


def test_an_unknown_claim_says_how_it_is_named():
    with pytest.raises(ValueError, match="pass --claim models=DIRECTORY"):
        storage_uri.resolve("pvc://models/x", Path("/runs"), {"other": Path("/mnt")})


@pytest.mark.parametrize(
    ("text", "expected"), [("file:///a/b", Path("/a/b")), ("org/name", None), ("s3://bkt/a", None)]
)
def test_the_folder_behind_a_location(text: str, expected: Path | None):
    assert storage_uri.local_path(text) == expected
