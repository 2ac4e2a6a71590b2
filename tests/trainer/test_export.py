"""An export appears whole and checked, or not at all; publishing comes last."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, PUBLISHED, export_path
from draftyard_api.progress import Acceptance
from draftyard_api.reasons import Reason
from draftyard_api.spec import Target
from draftyard_trainer.conformance_rules import TargetFacts, TextHashes
from draftyard_trainer.data.manifest import DataKey
from draftyard_trainer.draft.manifest import Manifest, Published, Settings
from draftyard_trainer.draft.testing import TINY, tiny_config, tiny_draft, tiny_embedding, tiny_provenance, tiny_sample
from draftyard_trainer.export import Evidence, export_draft, open_export, publish, target_facts
from draftyard_trainer.storage.local import LocalStore

RUN = "tiny"
NAME = export_path(RUN)
TEXT_CONFIG = {"vocab_size": TINY.vocab_size, "max_position_embeddings": TINY.max_position_embeddings}
KEY = DataKey(
    data_sha256="1" * 64,
    tokenizer_sha256="2" * 64,
    template_sha256="3" * 64,
    template_kwargs={},
    stop_ids=(2,),
    keep_ids=(),
    max_length=64,
    max_samples=None,
    eval_fraction="0.1",
    split_turns=False,
    vocab_size=40,
    target_vocab_size=TINY.vocab_size,
)


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path)


def evidence(config=TINY, dtype="bfloat16", facts: TargetFacts | None = None) -> Evidence:
    facts = facts or target_facts(config, TEXT_CONFIG, KEY, dtype)
    return Evidence(facts, tiny_sample(config), tiny_embedding(config), ttt_steps=4)


def export(store, config=TINY, dtype="bfloat16", seed=0, fingerprint="f1") -> str:
    draft, provenance = tiny_draft(config, seed), tiny_provenance(RUN, fingerprint)
    return export_draft(store, NAME, draft, provenance, evidence(config, dtype))


def test_an_export_is_a_draft_in_two_forms_with_a_manifest_that_names_the_files(store):
    sha256 = export(store)
    forms = ["config.json", "model.safetensors", "speculators/config.json", "speculators/model.safetensors"]
    assert store.list(NAME) == [f"{NAME}/{file}" for file in (MANIFEST, *forms)]
    content = store.read(f"{NAME}/{MANIFEST}")
    manifest = Manifest.model_validate_json(content)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert sorted(manifest.files) == forms
    for file, expected in manifest.files.items():
        stored = store.read(f"{NAME}/{file}")
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (expected.bytes, expected.sha256)


def test_the_manifest_says_where_the_draft_comes_from(store):
    export(store)
    manifest = json.loads(store.read(f"{NAME}/{MANIFEST}"))
    assert manifest["run"] == RUN
    assert manifest["fingerprint"] == "f1"
    assert (manifest["auxLayers"], manifest["nestedLayerIds"]) == ([2, 4, 5], [1, 3, 4])
    assert [rule["rule"] for rule in manifest["rules"]] == list(range(1, 24))
    assert {rule["result"] for rule in manifest["rules"]} == {"pass"}
    assert manifest["probe"]["steps"] == 4
    assert manifest["probe"]["maxAbsDifference"] == 0.0
    # Weights of size 0.2 rounded to 8 bits move logits, which is why the probe rounds both sides.
    assert manifest["probe"]["maxAbsRounding"] > 2e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_get_the_dtype_of_the_target(store, dtype):
    export(store, dtype=dtype)
    path = store.fetch(f"{NAME}/model.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("fc.weight").dtype == getattr(torch, dtype)
    assert json.loads(store.read(f"{NAME}/config.json"))["torch_dtype"] == dtype


def test_float32_weights_are_not_rounded(store):
    export(store, dtype="float32")
    assert json.loads(store.read(f"{NAME}/{MANIFEST}"))["probe"]["maxAbsRounding"] == 0.0


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(fc_norm=True, feed_normed_hidden=True),
        tiny_config(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        tiny_config(num_key_value_heads=4),
        tiny_config(aux_layers=(2,)),
    ],
    ids=["newer profile", "scaled rope", "no grouped heads", "one layer"],
)
def test_other_shapes_are_exported_too(store, config):
    export(store, config)
    manifest = Manifest.model_validate_json(store.read(f"{NAME}/{MANIFEST}"))
    assert all(rule.result == "pass" for rule in manifest.rules)
    assert manifest.flags["fcNorm"] == config.fc_norm


def test_a_warning_is_recorded_and_does_not_stop(store):
    facts = target_facts(TINY, TEXT_CONFIG, KEY, "bfloat16", served=TextHashes("2" * 64, "4" * 64))
    export_draft(store, NAME, tiny_draft(), tiny_provenance(RUN), evidence(facts=facts))
    manifest = Manifest.model_validate_json(store.read(f"{NAME}/{MANIFEST}"))
    assert [(rule.rule, rule.result) for rule in manifest.rules if rule.result != "pass"] == [(23, "warn")]
    assert "4444" in (manifest.rules[22].message or "")


def test_an_export_that_breaks_rules_is_never_seen(store):
    config = tiny_config(aux_layers=(3, 4, 5), norm_before_residual=True)
    with pytest.raises(Failure) as caught:
        export(store, config)
    assert (caught.value.code, caught.value.reason) == (ExitCode.NOT_CONFORMANT, Reason.CONFORMANCE_FAILED)
    assert "rule 13: " in caught.value.message
    assert "rule 22: " in caught.value.message
    assert store.list("export") == []
    assert not list(store.root.rglob("*"))[1:]


def test_a_diverged_draft_is_refused_and_the_earlier_export_stays(store):
    before = export(store)
    draft = tiny_draft(seed=1)
    with torch.no_grad():
        draft.fc.weight[0, 0] = torch.nan
    with pytest.raises(Failure, match=r"rule 12: fc\.weight: rms nan"):
        export_draft(store, NAME, draft, tiny_provenance(RUN), evidence())
    assert open_export(store, RUN, "f1").manifest_sha256 == before


def test_a_new_export_replaces_the_old_one_and_its_publication(store):
    export(store)
    publish(store, RUN, Target(model="org/target"), acceptance())
    second = export(store, seed=1, fingerprint="f2")
    assert not store.exists(f"{NAME}/{PUBLISHED}")
    assert open_export(store, RUN, "f2").manifest_sha256 == second


def acceptance(source: str = "Measured") -> Acceptance:
    return Acceptance(length="2.71", per_position=("0.78", "0.55", "0.38"), draft_tokens=3, prompts=256, source=source)


def test_publishing_writes_what_users_need(store):
    sha256 = export(store)
    settings = Settings(draft_tokens=3, max_prompts=256, max_new_tokens=512)
    uri = publish(store, RUN, Target(model="hf://org/target"), acceptance(), settings)
    published = Published.model_validate_json(store.read(f"{NAME}/{PUBLISHED}"))
    assert uri == f"file://{store.root}/{NAME}"
    assert (published.manifest_sha256, published.fingerprint) == (sha256, "f1")
    assert published.acceptance == acceptance()
    assert published.settings == settings
    assert published.serve.vllm.startswith("vllm serve org/target --speculative-config ")
    assert f"{store.root}/{NAME}" in published.serve.vllm
    assert f"--speculative-draft-model-path {store.root}/{NAME}" in published.serve.sglang


def test_publishing_twice_writes_the_same(store):
    export(store)
    target = Target(model="org/target")
    publish(store, RUN, target, acceptance("Simulated"))
    first = store.read(f"{NAME}/{PUBLISHED}")
    publish(store, RUN, target, acceptance("Simulated"))
    assert store.read(f"{NAME}/{PUBLISHED}") == first
    assert b"settings" not in first


def spoil(store: LocalStore, file: str, content: bytes) -> None:
    store.publish(f"{NAME}/{file}", content)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda store: store.delete_folder(NAME), "no MANIFEST.json"),
        (lambda store: spoil(store, MANIFEST, b"{}"), "MANIFEST.json is broken"),
        (lambda store: spoil(store, "config.json", b"{}"), "config.json is not what its manifest says"),
        (lambda store: store.delete(f"{NAME}/model.safetensors"), "model.safetensors is not what"),
        (lambda store: export(store, fingerprint="other"), "given fingerprint other; accepted: f1"),
    ],
    ids=["gone", "manifest broken", "config changed", "weights gone", "of another run"],
)
def test_an_export_that_is_not_whole_sends_train_back(store, break_it, message):
    export(store)
    assert open_export(store, RUN, "f1").manifest.fingerprint == "f1"
    break_it(store)
    with pytest.raises(Failure, match=message) as caught:
        open_export(store, RUN, "f1")
    assert (caught.value.code, caught.value.reason) == (ExitCode.STALE_INPUT, Reason.STALE_INPUT)
