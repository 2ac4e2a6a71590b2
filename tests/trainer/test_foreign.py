"""Drafts of other trainers, as they themselves write them, become ours: equal tensors, equal meaning, or a refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import MANIFEST
from draftyard_trainer import commands, testing
from draftyard_trainer.draft.files import read_draft
from draftyard_trainer.draft.foreign import read_foreign
from draftyard_trainer.draft.manifest import ConvertedManifest, FileRecord

THEIRS = Path(__file__).parent / "drafts_of_others"
TARGET: dict[str, Any] = {
    "hidden_size": 32,
    "vocab_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "rope_theta": 500000.0,
}
NAMES = {"specforge": "SpecForge", "specforge-normed": "SpecForge", "speculators": "speculators"}
NAMES["speculators-normed"] = "speculators"


def ours(name: str) -> str:
    return name.replace("layers.0.", "midlayer.")


def told(reading, what: str) -> tuple[str, str]:
    (line,) = [line for line in reading.lines if line.what == what]
    return line.found, line.mapped


# -- As they write them -----------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "layout"), NAMES.items(), ids=NAMES.keys())
def test_what_they_write_is_read_tensor_by_tensor(folder, layout):
    reading = read_foreign(THEIRS / folder, TARGET)
    theirs = {ours(name): tensor for name, tensor in load_file(THEIRS / folder / "model.safetensors").items()}
    mine = reading.draft.state_dict()
    assert reading.layout == layout
    assert set(theirs) - set(mine) <= {"embed_tokens.weight"}
    assert [name for name in mine if not torch.equal(mine[name], theirs[name].to(mine[name].dtype))] == []
    assert reading.dtype == "bfloat16"


@pytest.mark.parametrize("folder", NAMES)
def test_their_configs_mean_one_thing_in_ours(folder):
    config = read_foreign(THEIRS / folder, TARGET).draft.config
    normed = folder.endswith("normed")
    assert config.aux_layers == (2, 4, 5)
    assert (config.fc_norm, config.feed_normed_hidden) == (normed, normed)
    assert not config.norm_before_residual
    assert (config.intermediate_size, config.num_key_value_heads, config.head_dim) == (48, 2, 8)
    assert (config.rms_norm_eps, config.draft_vocab_size, config.vocab_size) == (1e-5, 40, 96)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == {
        "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    assert config.max_position_embeddings == 512


def test_layer_ids_are_told_with_the_convention_that_they_are_in():
    assert told(read_foreign(THEIRS / "specforge", TARGET), "layer ids") == (
        "nested [1, 3, 4]", "[2, 4, 5]: outputs of blocks, plus 1",
    )  # fmt: skip
    assert told(read_foreign(THEIRS / "speculators", TARGET), "layer ids") == (
        "top level [2, 4, 5]", "[2, 4, 5]: inputs of blocks",
    )  # fmt: skip


def test_a_layer_of_qwen3_is_refused():
    with pytest.raises(ValueError, match=r"q_norm\.weight.*a layer of Qwen3; accepted: a Llama layer"):
        read_foreign(THEIRS / "speculators-qwen3", TARGET)


# -- Variants of them -------------------------------------------------------------------------


class Variant:
    """SpecForge's draft, changed."""

    def __init__(self, folder: Path, base: str = "specforge") -> None:
        self.folder = folder / "variant"
        shutil.copytree(THEIRS / base, self.folder)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = load_file(self.folder / "model.safetensors")

    def read(self, **target: Any):
        (self.folder / "config.json").write_text(json.dumps(self.config))
        (self.folder / "model.safetensors").unlink()
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, self.folder / "model.safetensors")
        return read_foreign(self.folder, TARGET | target)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    return Variant(tmp_path)


def absolute(variant: Variant) -> None:
    variant.tensors["d2t"] = variant.tensors["d2t"] + torch.arange(40)


def prefixed(variant: Variant) -> None:
    variant.tensors = {f"model.{name}": tensor for name, tensor in variant.tensors.items()}


def renamed(variant: Variant) -> None:
    variant.tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in variant.tensors.items()}


def without(name: str) -> Callable[[Variant], None]:
    def remove(variant: Variant) -> None:
        del variant.tensors[name]

    return remove


def with_config(**changes: Any) -> Callable[[Variant], None]:
    return lambda variant: variant.config.update(changes)


def eagle(variant: Variant) -> None:
    """The paper's own: class and key names of a plain Llama, no layer ids, no head size, no later spelling of rope."""
    for name in ("eagle_config", "rope_parameters", "head_dim"):
        variant.config.pop(name, None)
    variant.config.update(architectures=["LlamaForCausalLM"])


SAME: dict[str, tuple[Callable[[Variant], None], str, str]] = {
    "absolute ids": (absolute, "d2t", "as offsets"),
    "names under model.": (prefixed, "names", "as "),
    "names of layers": (renamed, "names", "as midlayer."),
    "no t2d": (without("t2d"), "t2d", "as d2t says"),
    "no d2t": (without("d2t"), "d2t", "from t2d"),
    "bytes for bools": (lambda v: v.tensors.update(t2d=v.tensors["t2d"].to(torch.uint8)), "t2d", "as d2t says"),
    "the paper's": (eagle, "layer ids", "[2, 4, 5]: the default of both engines for 8 layers"),
    "a rotary table": (
        lambda v: v.tensors.update({"midlayer.self_attn.rotary_emb.inv_freq": torch.ones(4)}), "further tensors",
        "dropped",
    ),
    "nested ids that are inputs": (
        with_config(eagle_config={"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}), "layer ids", "inputs of blocks, as",
    ),
    "SpecForge's own norm_output": (
        with_config(norm_output=True), "norm flags", "profile eagle3: without fc_norm, norm_output is the norm before",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "what", "words"), SAME.values(), ids=SAME.keys())
def test_other_spellings_are_one_draft(variant, change, what, words):
    plain = read_foreign(THEIRS / "specforge", TARGET).draft
    change(variant)
    reading = variant.read()
    assert reading.draft.config == plain.config
    mine, theirs = reading.draft.state_dict(), plain.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert words in told(reading, what)[1]


def test_an_embedding_is_kept_apart():
    reading = read_foreign(THEIRS / "speculators", TARGET)
    assert reading.embedding is not None
    assert reading.embedding.shape == (96, 32)
    assert read_foreign(THEIRS / "specforge", TARGET).embedding is None


def ambiguous(variant: Variant) -> None:
    """Ascending both as offsets and as ids, and no t2d to decide."""
    del variant.tensors["t2d"]
    variant.tensors["d2t"] = torch.arange(40)


def eagle_2(variant: Variant) -> None:
    for name in ("hidden_norm", "input_layernorm"):
        del variant.tensors[f"midlayer.{name}.weight"]
    variant.tensors["fc.weight"] = torch.zeros(32, 64)


def second_layer(variant: Variant) -> None:
    renamed(variant)
    variant.tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(48, 32)


REFUSED: dict[str, tuple[Callable[[Variant], None], str]] = {
    "EAGLE-1 and EAGLE-2": (eagle_2, "an EAGLE-1 or EAGLE-2 draft"),
    "two layers": (second_layer, r"layers: given layers\.1.*accepted: drafts of one layer"),
    "two layers by its config": (with_config(num_hidden_layers=2), "num_hidden_layers: given 2; accepted: 1"),
    "an attention bias": (with_config(attention_bias=True), "attention_bias: given true; accepted: false"),
    "a bias": (lambda v: v.tensors.update({"midlayer.self_attn.q_proj.bias": torch.ones(32)}), "no biases"),
    "a sliding window": (with_config(sliding_window=64), "sliding_window: given 64"),
    "another activation": (with_config(hidden_act="gelu"), "hidden_act: given gelu; accepted: silu"),
    "another vocabulary": (with_config(vocab_size=97), "vocab_size: given 97; accepted: 96"),
    "another hidden size": (lambda v: v.tensors.update({"fc.weight": torch.zeros(16, 96)}), "hidden_size: given 16"),
    "a norm before the residual": (with_config(norm_before_residual=True), "norm_before_residual: given true"),
    "a norm before the fusion": (with_config(norm_before_fc=True), "norm_before_fc: given true"),
    "half of the later profile": (with_config(fc_norm=True), r"fc_norm, norm_output: given True, False"),
    "four layer ids": (
        with_config(eagle_aux_hidden_state_layer_ids=[2, 3, 4, 5]), "accepted: 3 ids, since fc.weight fuses 3 states",
    ),
    "another first layer": (with_config(eagle_aux_hidden_state_layer_ids=[3, 4, 5]), "ascending, 2 first"),
    "a layer that the target lacks": (with_config(eagle_aux_hidden_state_layer_ids=[2, 4, 9]), "below 8"),
    "a map that can be read twice": (ambiguous, "can be read as offsets and as ids"),
    "a map of no vocabulary": (lambda v: v.tensors.update(d2t=v.tensors["d2t"].flip(0)), "d2t: read as offsets or"),
    "a map of floats": (lambda v: v.tensors.update(d2t=v.tensors["d2t"].float()), "d2t: given torch.float32"),
    "a t2d of another size": (lambda v: v.tensors.update(t2d=v.tensors["t2d"][:-1]), "t2d: given 95 entries"),
    "no map at all": (lambda v: [v.tensors.pop(name) for name in ("d2t", "t2d")], "d2t, t2d: given neither"),
    "no head": (without("lm_head.weight"), r"no lm_head\.weight"),
    "a missing norm": (without("norm.weight"), "norm.weight"),
    "an unknown tensor": (lambda v: v.tensors.update(extra=torch.ones(2)), "extra"),
    "a NaN": (lambda v: v.tensors["norm.weight"].fill_(torch.nan), "norm.weight: not finite"),
    "no draft at all": (lambda v: setattr(v, "tensors", {"a": torch.ones(2)}), "accepted: an EAGLE-3 draft"),
    "another kind of speculator": (with_config(speculators_model_type="dflash"), "given dflash; accepted: eagle3"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_ours_is_refused_with_one_reason(variant, change, words):
    change(variant)
    with pytest.raises(ValueError, match=words) as caught:
        variant.read()
    assert len(str(caught.value).splitlines()) < 8


def test_a_residual_flag_that_two_readers_take_in_two_ways_must_be_there(tmp_path):
    variant = Variant(tmp_path, "speculators")
    del variant.config["norm_before_residual"]
    with pytest.raises(ValueError, match="which speculators reads as false and vLLM as true"):
        variant.read()


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickled") as caught:
        read_foreign(tmp_path, TARGET)
    # what it says to run, run as it stands there, by a person who trusts the file
    program = str(caught.value).split("'PROGRAM'\n    ")[1].split("\n    PROGRAM")[0]
    assert "weights_only=True" in program
    assert "save_file" in program
    compile(program, "shown", "exec")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no \\*.safetensors"),
        ({"model.safetensors": b"junk"}, "model.safetensors"),
    ],
    ids=["an empty folder", "torn weights"],
)
def test_a_folder_that_is_no_draft_is_refused(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_foreign(tmp_path, TARGET)


# -- The command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    return testing.write_target(folder, vocab_size=96, max_position_embeddings=512)


def run_convert(source: Path, out: Path, target: Path) -> int:
    return commands.convert([str(source), str(out), "--target", str(target)])


@pytest.mark.parametrize("folder", NAMES)
def test_the_command_writes_a_draft_that_is_read_by_its_own_config(tmp_path, target, folder, capsys):
    out = tmp_path / "converted"
    assert run_convert(THEIRS / folder, out, target) == ExitCode.OK
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", MANIFEST}
    reading = read_foreign(THEIRS / folder, TARGET)
    loaded = read_draft(out)
    assert loaded.config == reading.draft.config
    theirs = reading.draft.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.model.state_dict().items())
    manifest = ConvertedManifest.model_validate_json((out / MANIFEST).read_bytes())
    assert (manifest.layout, manifest.source, manifest.vocabulary) == (NAMES[folder], folder, 40)
    assert manifest.files == {name: FileRecord.of(out / name) for name in ("config.json", "model.safetensors")}
    assert str(THEIRS) not in (out / MANIFEST).read_text()
    shown = capsys.readouterr().out
    for what in ("layout", "layer ids", "norm flags", "rope", "d2t", "embed_tokens"):
        assert what in shown
        assert what in {line.what for line in manifest.mapping}


def test_an_embedding_that_is_not_the_targets_is_said(tmp_path, target):
    assert run_convert(THEIRS / "speculators", tmp_path / "converted", target) == ExitCode.OK
    manifest = ConvertedManifest.model_validate_json((tmp_path / "converted" / MANIFEST).read_bytes())
    (line,) = [line for line in manifest.mapping if line.what == "embed_tokens"]
    assert "96 of 96 rows are NOT the target's" in line.mapped


@pytest.mark.parametrize(
    ("source", "words"),
    [(THEIRS / "speculators-qwen3", "q_norm"), (THEIRS / "nowhere", "no folder"), (THEIRS, "no *.safetensors")],
    ids=["another layer", "nowhere", "no draft"],
)
def test_a_refusal_writes_nothing(tmp_path, target, source, words, capsys):
    assert run_convert(source, tmp_path / "converted", target) == ExitCode.UNSUPPORTED
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_written_to(tmp_path, target, capsys):
    (tmp_path / "mine").write_text("kept")
    assert run_convert(THEIRS / "specforge", tmp_path, target) == ExitCode.UNSUPPORTED
    assert "which exists; accepted: a folder that does not" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "kept"
