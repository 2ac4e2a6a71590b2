"""The printed command lines are what a shell reads back."""

from __future__ import annotations

import json
import shlex

import pytest

from draftyard_api import serving
from draftyard_api.spec import Tree


def test_vllm_line_carries_the_speculative_config_as_json():
    words = shlex.split(serving.vllm("org/target", "/data/my draft", 3))
    assert words[:3] == ["vllm", "serve", "org/target"]
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config == {"method": "eagle3", "model": "/data/my draft", "num_speculative_tokens": 3}


def test_sglang_counts_the_verified_token_too():
    words = shlex.split(serving.sglang("org/target", "/data/draft", 3))
    assert words[words.index("--speculative-num-steps") + 1] == "3"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "4"
    assert words[words.index("--speculative-algorithm") + 1] == "EAGLE3"


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("file:///data/my draft", "/data/my draft"),
        ("hf://org/target", "org/target"),
        ("org/target", "org/target"),
        ("s3://bucket/draft", "s3://bucket/draft"),
    ],
)
def test_a_location_is_what_an_engine_takes(uri, location):
    assert serving.location(uri) == location


def test_sglang_serves_the_tree_that_was_judged():
    words = shlex.split(serving.sglang("org/target", "/data/draft", 5, Tree(steps=5, top_k=8, draft_tokens=64)))
    assert words[words.index("--speculative-num-steps") + 1] == "5"
    assert words[words.index("--speculative-eagle-topk") + 1] == "8"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "64"
