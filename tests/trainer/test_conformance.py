"""One good export, and one mutation per rule: exactly that rule fires. Then both engines' renames, replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftyard_trainer.conformance import RULES, Level, check, has_errors
from draftyard_trainer.conformance_rules import TargetFacts, TextHashes
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE, read_files, read_header
from draftyard_trainer.draft.testing import TINY, tiny_draft, tiny_embedding, tiny_sample
from draftyard_trainer.export import write_files
from draftyard_trainer.probe import Probe, record_probe

FACTS = TargetFacts(
    profile="eagle3",
    vocab_size=TINY.vocab_size,
    max_position_embeddings=TINY.max_position_embeddings,
    rope_theta=TINY.rope_theta,
    rope_scaling=None,
    aux_layers=TINY.aux_layers,
    marker_ids=(2,),
    dtype="bfloat16",
    captured=TextHashes("a" * 64, "b" * 64),
    served=TextHashes("a" * 64, "b" * 64),
    engines=("vllm 0.32.0",),
)


@dataclass
class Case:
    """An export that may be spoilt: its JSON, its tensors, and the facts it is held against."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    facts: TargetFacts
    probe: Probe

    def findings(self, folder: Path) -> list[tuple[int, str]]:
        (folder / CONFIG_FILE).write_text(json.dumps(self.config))
        save_file(self.tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        return [(finding.rule, str(finding.level)) for finding in check(folder, self.facts, self.probe)]

    def rename(self, old: str, new: str) -> None:
        self.tensors[new] = self.tensors.pop(old)


@pytest.fixture
def case(tmp_path) -> Case:
    draft = tiny_draft()
    write_files(tmp_path, draft, "bfloat16")
    probe = record_probe(draft, tiny_embedding(), tiny_sample(), 4, FACTS.dtype)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    return Case(config, load_file(tmp_path / WEIGHTS_FILE), FACTS, probe)


def set_config(**changes: Any) -> Callable[[Case], None]:
    return lambda case: case.config.update(changes)


def set_facts(**changes: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.facts = replace(case.facts, **changes)

    return change


def set_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Case], None]:
    def spoil(case: Case) -> None:
        case.tensors[name] = change(case.tensors[name]).contiguous()

    return spoil


def set_layers(top: list[int], nested: list[int]) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.config["eagle_aux_hidden_state_layer_ids"] = top
        case.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = nested

    return change


def prefix_all(case: Case) -> None:
    case.tensors = {f"model.{name}": tensor for name, tensor in case.tensors.items()}


def absolute_ids(offsets: Tensor) -> Tensor:
    return offsets + torch.arange(len(offsets))


def with_nan(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[7] = torch.nan
    return tensor


def foreign_embedding(case: Case) -> None:
    case.tensors["embed_tokens.weight"] = torch.randn(TINY.vocab_size, TINY.hidden_size).bfloat16()


MUTATIONS: list[tuple[str, int, Callable[[Case], None]]] = [
    ("plain Llama class", 1, set_config(architectures=["LlamaForCausalLM"])),
    ("tensor missing", 2, lambda case: case.tensors.pop("midlayer.hidden_norm.weight")),
    ("tensor misspelt", 2, lambda case: case.rename("fc.weight", "fusion.weight")),
    ("tensor unknown", 2, lambda case: case.tensors.update(bias=torch.zeros(3).bfloat16())),
    ("names already prefixed", 3, prefix_all),
    ("attention without the embedding", 4, set_tensor("midlayer.self_attn.k_proj.weight", lambda w: w[:, :32])),
    ("two layers fused, three named", 5, set_tensor("fc.weight", lambda w: w[:, :64])),
    ("number of layers wrong", 5, set_config(num_aux_hidden_states=2)),
    ("head has a row less", 6, set_tensor("lm_head.weight", lambda w: w[:-1])),
    ("draft vocabulary size wrong", 6, set_config(draft_vocab_size=41)),
    ("absolute ids in place of offsets", 7, set_tensor("d2t", absolute_ids)),
    ("offsets as int32", 7, set_tensor("d2t", lambda ids: ids.int())),
    ("a token marked that d2t lacks", 8, set_tensor("t2d", torch.ones_like)),
    ("mask of another vocabulary", 8, set_tensor("t2d", lambda member: torch.cat([member, ~member[:8] & False]))),
    ("stop token cannot be proposed", 9, set_facts(marker_ids=(2, 95, 94, 93, 92))),
    ("vocabulary without padding", 10, set_config(vocab_size=128)),
    ("head tied to the embedding", 11, set_config(tie_word_embeddings=True)),
    ("a value is not finite", 12, set_tensor("midlayer.mlp.up_proj.weight", with_nan)),
    ("a tensor is zero", 12, set_tensor("fc.weight", torch.zeros_like)),
    ("an embedding of its own", 12, foreign_embedding),
    ("nested ids as inputs of blocks", 13, set_layers([2, 4, 5], [2, 4, 5])),
    ("layers of another capture", 14, set_layers([2, 3, 5], [1, 2, 4])),
    ("a norm was changed after training", 15, set_tensor("norm.weight", lambda w: w * 1.5)),
    ("a head of another shape", 15, set_tensor("midlayer.mlp.down_proj.weight", lambda w: w[:16])),
    ("default rope theta", 16, set_config(rope_theta=500000.0)),
    ("rope scaling lost", 16, set_facts(rope_scaling={"rope_type": "linear", "factor": 2.0})),
    ("positions of a short training", 17, set_config(max_position_embeddings=64)),
    ("sliding window", 18, set_config(sliding_window=128)),
    ("attention bias", 19, set_config(attention_bias=True)),
    ("use_cache null", 20, set_config(use_cache=None)),
    ("null in a nested place", 20, lambda case: case.config["eagle_config"].update(note=None)),
    ("weights in float32 for a bfloat16 target", 21, lambda case: case.tensors.update(widened(case.tensors))),
    ("a newer key in the portable profile", 22, set_config(norm_output=True)),
    ("residual flag not written", 22, lambda case: case.config.pop("norm_before_residual")),
    ("another template than in training", 23, set_facts(served=TextHashes("a" * 64, "c" * 64))),
]


def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}


def test_a_good_export_breaks_no_rule(case, tmp_path):
    assert case.findings(tmp_path) == []


@pytest.mark.parametrize(("rule", "mutate"), [m[1:] for m in MUTATIONS], ids=[f"{m[1]}: {m[0]}" for m in MUTATIONS])
def test_a_mutation_breaks_exactly_its_rule(case, tmp_path, rule, mutate):
    mutate(case)
    level = {known.number: known.level for known in RULES}[rule]
    assert case.findings(tmp_path) == [(rule, str(level))]


def test_every_rule_has_a_mutation():
    assert [rule.number for rule in RULES] == list(range(1, 24))
    assert {mutation[1] for mutation in MUTATIONS} == set(range(1, 24))
    assert {rule.number for rule in RULES if rule.level is Level.W} == {9, 17, 21, 23}


def test_messages_say_what_was_given_and_what_is_accepted(case, tmp_path):
    case.config.update(rope_theta=5.0)
    case.findings(tmp_path)
    (finding,) = check(tmp_path, case.facts, case.probe)
    assert "given 5.0" in finding.message
    assert "accepted: 10000.0" in finding.message
    assert has_errors([finding])
    assert not has_errors([])


def test_newer_keys_need_recorded_engine_versions(case, tmp_path):
    case.config["norm_output"] = True
    case.facts = replace(case.facts, profile="eagle3.1", engines=())
    assert case.findings(tmp_path) == [(22, "E")]


def test_the_target_embedding_may_be_included(case, tmp_path):
    case.tensors["embed_tokens.weight"] = case.probe.embedding.bfloat16()
    assert case.findings(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no safetensors header"), (b"\x10\0\0\0\0\0\0\0not json at all.", "broken"), (None, "its header needs")],
    ids=["empty", "no JSON", "cut off"],
)
def test_a_broken_file_is_named(case, tmp_path, content, message):
    case.findings(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-64] if content is None else content)
    with pytest.raises(ValueError, match=message):
        read_header(path)


def test_a_config_that_is_no_object_is_named(case, tmp_path):
    case.findings(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("[1]")
    with pytest.raises(ValueError, match="accepted: an object"):
        read_files(tmp_path)


def test_headers_are_those_of_the_library(case, tmp_path):
    case.findings(tmp_path)
    headers, tensors = read_header(tmp_path / WEIGHTS_FILE), case.tensors
    assert {name: header.shape for name, header in headers.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert read_files(tmp_path).read_integers("d2t").tolist() == tensors["d2t"].tolist()
    assert read_files(tmp_path).read_integers("t2d").tolist() == tensors["t2d"].long().tolist()
    assert read_files(tmp_path).read_integers("fc.weight") is None


# -- What the engines make of the names --------------------------------------------------------

FUSED = {
    "self_attn.q_proj": "self_attn.qkv_proj[q]",
    "self_attn.k_proj": "self_attn.qkv_proj[k]",
    "self_attn.v_proj": "self_attn.qkv_proj[v]",
    "mlp.gate_proj": "mlp.gate_up_proj[0]",
    "mlp.up_proj": "mlp.gate_up_proj[1]",
}
LAYER = (
    *FUSED.values(),
    "self_attn.o_proj",
    "mlp.down_proj",
    "input_layernorm",
    "hidden_norm",
    "post_attention_layernorm",
)


def fuse(name: str) -> str:
    for plain, fused in FUSED.items():
        name = name.replace(plain, fused)
    return name


def engine_parameters(layer: str) -> set[str]:
    """Parameters of one decoder layer, fused projections by their parts, and what is around it."""
    names = {f"{layer}.{part}.weight" for part in LAYER}
    return {*names, "model.fc.weight", "model.norm.weight", "lm_head.weight"}


def sglang_name(name: str, layer: str) -> str | None:
    """The parameter that a tensor fills: tried as it is, then with `model.`. None: left out on purpose."""
    if name == "t2d":
        return None
    if name == "d2t":
        return "hot_token_id"
    renamed = fuse(name.replace("midlayer.", f"{layer}."))
    return renamed if renamed in engine_parameters(f"model.{layer}") else f"model.{renamed}"


def vllm_name(name: str) -> str | None:
    """The parameter that a tensor fills: everything but the head and the map gets `model.`."""
    if name == "t2d":
        return None
    if name == "d2t":
        return "draft_id_to_target_id"
    renamed = fuse(name.replace("midlayer.", "layers.0."))
    return renamed if renamed == "lm_head.weight" else f"model.{renamed}"


@pytest.mark.parametrize("layer", ["midlayer", "layers.0"], ids=["older SGLang", "newer SGLang"])
def test_sglang_finds_every_parameter_and_knows_every_tensor(case, layer):
    filled = [sglang_name(name, layer) for name in case.tensors]
    assert sorted(filter(None, filled)) == sorted({*engine_parameters(f"model.{layer}"), "hot_token_id"})


def test_vllm_finds_every_parameter_and_knows_every_tensor(case):
    filled = [vllm_name(name) for name in case.tensors]
    assert sorted(filter(None, filled)) == sorted({*engine_parameters("model.layers.0"), "draft_id_to_target_id"})
