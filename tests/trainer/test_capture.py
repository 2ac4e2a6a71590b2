"""The loaded target: what it refuses to load, how it batches, and how it answers."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Target
from draftyard_trainer import testing
from draftyard_trainer.data.document import Document, Ids
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.hidden_states.probe import Probe, find_problems, judge, mean_nll, probe_capture
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.testing import tiny_document
from draftyard_trainer.target.anatomy import find_decoder
from draftyard_trainer.target.capture import CapturedTarget, compute_dtype, length_batches
from draftyard_trainer.target.location import TargetFiles, locate

torch.set_num_threads(1)
LAYERS = (2, 4, 5)
DOCUMENTS = [tiny_document(number, length) for number, length in enumerate((30, 7, 44, 7, 21, 3))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def files(folder: Path) -> TargetFiles:
    return locate(Target(model=f"file://{folder}"))


@pytest.fixture(scope="module")
def target(files: TargetFiles) -> CapturedTarget:
    return CapturedTarget.load(files, "float32", LAYERS)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


# -- Loading -----------------------------------------------------------------------------------------


def test_a_loaded_target(target: CapturedTarget, files: TargetFiles) -> None:
    assert target.identity == files.identity
    assert target.device.type == "cpu"
    assert target.head.lm_head.shape == (384, 32)
    assert not target.head.lm_head.requires_grad


@pytest.mark.parametrize("layers", [(0, 2), (2, 8), (2, 99)])
def test_layers_that_the_target_has_not(files: TargetFiles, layers: tuple[int, ...]) -> None:
    with pytest.raises(Failure, match=r"draft\.auxLayers: given \d+; accepted: 1 to 7") as caught:
        CapturedTarget.load(files, "float32", layers)
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED)


def test_missing_weights_are_never_random(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failure, match=r"lack 1 tensors, such as model\.layers\.3\.mlp\.up_proj\.weight") as caught:
        CapturedTarget.load(locate(Target(model=f"file://{copy}")), "float32", LAYERS)
    assert caught.value.code is ExitCode.UNSUPPORTED


def load_all(folder: Path) -> None:
    """Everything that a library reads of a target."""
    files = locate(Target(model=f"file://{folder}"))
    load_tokenizer(files.path, files.model, trust_remote_code=False)
    CapturedTarget.load(files, "float32", LAYERS)


@pytest.mark.parametrize("loader", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_a_full_disk_is_not_blamed_on_the_target(folder: Path, loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*_args: Any, **_options: Any) -> None:
        # what a line for a log on that disk ends in
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"transformers.{loader}.from_pretrained", from_pretrained)
    with pytest.raises(OSError, match="No space left"):
        load_all(folder)


def test_a_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(Failure, match="transformers cannot load it") as caught:
        CapturedTarget.load(locate(Target(model=f"file://{copy}")), "float32", LAYERS)
    assert caught.value.code is ExitCode.UNSUPPORTED


@pytest.mark.parametrize("field", [{"logit_scale": 0.5}, {"final_logit_softcapping": 1.0}])
def test_a_head_that_does_not_give_the_models_logits(files: TargetFiles, field: dict[str, float]) -> None:
    """As in a family whose logits are scaled by a field that we do not know."""
    other = dataclasses.replace(files, config={**files.config, **field})
    with pytest.raises(Failure, match="its logits are not those of its final norm and head") as caught:
        CapturedTarget.load(other, "float32", LAYERS)
    assert caught.value.code is ExitCode.UNSUPPORTED


class Encoder(nn.Module):
    """A model of another kind: blocks, but no norm behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])


def test_a_model_without_a_final_norm() -> None:
    with pytest.raises(Failure, match=r"no module with 3 blocks .* found: embeddings \(Embedding\), layers") as caught:
        find_decoder(Encoder(), 3, "org/encoder")
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED)
    assert "org/encoder" in caught.value.message


def test_a_decoder_inside_a_larger_model() -> None:
    tower, decoder, outer = Encoder(), Encoder(), nn.Module()
    tower.norm, decoder.norm = nn.LayerNorm(4), nn.LayerNorm(4)
    decoder.layers.append(nn.Linear(4, 4))
    outer.vision_tower, outer.language_model = tower, decoder
    assert find_decoder(outer, 4, "org/both").backbone is decoder


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [("cpu", "bfloat16", torch.float32), ("cuda", "bfloat16", torch.bfloat16), ("cuda", "float32", torch.float32)],
)
def test_what_it_computes_in(device: str, dtype: str, expected: torch.dtype) -> None:
    assert compute_dtype(torch.device(device), dtype) == expected


# -- Capturing ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 200))
def test_batches(lengths: list[int], budget: int) -> None:
    batches = length_batches(lengths, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget for batch in batches)


def test_batches_keep_like_lengths_together() -> None:
    assert length_batches([10, 50, 9, 48], 100) == [[1, 3], [0, 2]]


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_padding_and_order_change_nothing(files: TargetFiles, target: CapturedTarget, batch_tokens: int) -> None:
    batched = CapturedTarget.load(files, "float32", LAYERS)
    batched.batch_tokens = batch_tokens
    samples = batched.capture(DOCUMENTS)
    assert [sample.document for sample in samples] == DOCUMENTS
    for document, sample in zip(DOCUMENTS, samples, strict=True):
        (alone,) = target.capture([document])
        assert sample.aux.shape == (document.num_tokens, 3 * 32)
        assert len(sample.last) == len(sample.tok) == len(sample.lse) == len(document.label_rows())
        for name in ("aux", "last", "lse"):
            # sums in another order are off by the spacing of the largest terms, not of a sum that happens to be small
            bound = 4e-6 * float(getattr(alone, name).abs().max())
            assert torch.allclose(getattr(sample, name), getattr(alone, name), atol=bound, rtol=0)
        assert torch.equal(sample.tok, alone.tok)


def test_on_a_cpu_a_document_has_the_same_bits_in_any_company(target: CapturedTarget) -> None:
    together = target.capture(DOCUMENTS)
    for document, sample in zip(reversed(DOCUMENTS), reversed(together), strict=True):
        (alone,) = target.capture([document])
        assert torch.equal(sample.aux, alone.aux)
        assert torch.equal(sample.lse, alone.lse)


def test_no_documents(target: CapturedTarget) -> None:
    assert target.capture([]) == []


def test_a_document_without_an_answer_has_no_labels(target: CapturedTarget) -> None:
    (sample,) = target.capture([Document(1, np.array([4, 5, 6]), np.zeros((0, 2), dtype=np.int64))])
    assert sample.aux.shape == (3, 96)
    assert (len(sample.last), len(sample.tok), len(sample.lse)) == (0, 0, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_states_are_rounded_before_labels_are_made(files: TargetFiles, target: CapturedTarget, dtype: Any) -> None:
    rounded = CapturedTarget.load(files, dtype, LAYERS)
    (sample,), (exact,) = rounded.capture(DOCUMENTS[:1]), target.capture(DOCUMENTS[:1])
    assert sample.aux.dtype == sample.last.dtype == getattr(torch, dtype)
    assert torch.equal(sample.aux, exact.aux.to(sample.aux.dtype))
    assert torch.equal(sample.last, exact.last.to(sample.last.dtype))
    again = rounded.head.tok_lse(sample.last)
    assert torch.equal(sample.tok, again.tok)
    assert torch.equal(sample.lse, again.lse)


def test_training_can_differentiate_through_states(target: CapturedTarget) -> None:
    (sample,) = target.capture(DOCUMENTS[:1])
    fc = nn.Linear(96, 4)
    fc(sample.aux).square().sum().backward()
    assert float(fc.weight.grad.abs().sum()) > 0


class Crowded(CapturedTarget):
    """A device whose memory holds 100 padded tokens."""

    fits = 100

    def _capture_batch(self, documents: Sequence[Document]) -> list[Sample]:
        if len(documents) * max(document.num_tokens for document in documents) > self.fits:
            raise torch.OutOfMemoryError
        return super()._capture_batch(documents)


def test_out_of_memory_once_halves_the_batch(files: TargetFiles) -> None:
    crowded = Crowded.load(files, "float32", LAYERS)
    crowded.batch_tokens = 180
    assert [sample.document for sample in crowded.capture(DOCUMENTS)] == DOCUMENTS
    assert crowded.batch_tokens == 90
    crowded.fits = 20
    with pytest.raises(torch.OutOfMemoryError):
        crowded.capture(DOCUMENTS)


# -- Answering ---------------------------------------------------------------------------------------

PROMPTS = [document.tokens for document in DOCUMENTS]


def slowly(folder: Path, prompt: Ids, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
    """Greedy decoding without a cache or a batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = prompt.tolist()
    for _ in range(max_new_tokens):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


def test_greedy_replies_are_those_of_one_by_one(folder: Path, target: CapturedTarget) -> None:
    expected = [slowly(folder, prompt, 20, ()) for prompt in PROMPTS]
    # tokens that some replies have early: those rows leave the batch, the others go on
    stops = (expected[0][3], expected[2][7])
    expected = [slowly(folder, prompt, 20, stops) for prompt in PROMPTS]
    replies = target.greedy(PROMPTS, 20, stops)
    assert [reply.tolist() for reply in replies] == expected
    assert len({len(reply) for reply in replies}) > 1
    assert replies[0][-1] in stops
    assert all(reply.dtype == np.int64 for reply in replies)


def test_the_models_own_generation_settings_do_not_count(folder: Path, tmp_path: Path, target: CapturedTarget) -> None:
    copy = copied(folder, tmp_path)
    settings = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 5.0, "eos_token_id": 7}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    other = CapturedTarget.load(locate(Target(model=f"file://{copy}")), "float32", LAYERS)
    for ours, theirs in zip(target.greedy(PROMPTS, 12, ()), other.greedy(PROMPTS, 12, ()), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_limits_of_replies(target: CapturedTarget) -> None:
    assert [len(reply) for reply in target.greedy(PROMPTS, 1, ())] == [1] * len(PROMPTS)
    assert [reply.tolist() for reply in target.greedy(PROMPTS, 0, ())] == [[]] * len(PROMPTS)
    assert target.greedy([], 5, ()) == []
    with pytest.raises(ValueError, match="given an empty prompt"):
        target.greedy([np.zeros(0, dtype=np.int64)], 5, ())


# -- The parity probe --------------------------------------------------------------------------------


def whole(document: Document) -> Document:
    return Document(document.doc_id, document.tokens, np.array([[0, document.num_tokens]]))


def test_the_probe_of_a_right_capture(target: CapturedTarget) -> None:
    probe = probe_capture(target, DOCUMENTS[2])
    assert [layer.layer for layer in probe.layers] == list(LAYERS)
    assert all(layer.error == 0.0 and layer.neighbour_error > 0.1 for layer in probe.layers)
    assert probe.last_error == 0.0
    assert probe.tokens == 44


def test_the_probe_knows_rounding_from_mistakes(files: TargetFiles) -> None:
    probe = probe_capture(CapturedTarget.load(files, "bfloat16", LAYERS), DOCUMENTS[2])
    assert all(0 < layer.error < 0.01 for layer in probe.layers)


def next_layers(sample: Sample, states: Sequence[torch.Tensor]) -> Sample:
    return dataclasses.replace(sample, aux=torch.cat([states[layer + 1] for layer in LAYERS], dim=-1))


def layer_before(sample: Sample, states: Sequence[torch.Tensor]) -> Sample:
    return dataclasses.replace(sample, aux=torch.cat([states[1], states[4], states[5]], dim=-1))


def last_of_an_earlier_block(sample: Sample, states: Sequence[torch.Tensor]) -> Sample:
    return dataclasses.replace(sample, last=states[6])


def last_without_its_norm(sample: Sample, states: Sequence[torch.Tensor]) -> Sample:
    return dataclasses.replace(sample, last=states[7] * 3)


def without_a_prefix(sample: Sample, states: Sequence[torch.Tensor]) -> Sample:
    return dataclasses.replace(sample, aux=sample.aux.roll(1, dims=0))


def not_finite(sample: Sample, states: Sequence[torch.Tensor]) -> Sample:
    return dataclasses.replace(sample, lse=torch.full_like(sample.lse, torch.inf))


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        pytest.param(next_layers, "layer 2: error", id="ids one too high"),
        pytest.param(layer_before, "layer 2: error", id="one id one too low"),
        pytest.param(last_of_an_earlier_block, "final state: error", id="last from block L-2"),
        pytest.param(last_without_its_norm, "final state: error", id="last without the norm"),
        pytest.param(without_a_prefix, "layer 2: error", id="a cached prefix is missing: rows shifted"),
        pytest.param(not_finite, "not finite", id="an lse that is not finite"),
    ],
)
def test_the_probe_finds(target: CapturedTarget, mistake: Any, says: str) -> None:
    document = whole(DOCUMENTS[2])
    (sample,), states = target.capture([document]), target.hidden_states(document.tokens)
    judge(target, sample, states)
    with pytest.raises(Failure, match=says) as caught:
        judge(target, mistake(sample, states), states)
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED)


@pytest.mark.parametrize(
    ("same", "following", "after", "is_wrong"),
    [
        pytest.param(9.9, 4.6, 8.4, False, id="a trained target"),
        pytest.param(4.0, 4.6, 8.4, True, id="a trained target, the token itself is likelier"),
        pytest.param(9.9, 4.6, 4.1, True, id="a trained target, the token after the next is likelier"),
        pytest.param(3.4, 7.4, 7.4, False, id="random weights: tied ones predict the token itself"),
    ],
)
def test_likelihoods_show_a_shift(same: float, following: float, after: float, is_wrong: bool) -> None:
    probe = Probe(tokens=64, layers=(), last_error=0.0, same_nll=same, next_nll=following, after_nll=after)
    assert bool(find_problems(probe, vocab_size=1000)) is is_wrong


def test_likelihoods_are_those_of_the_model(folder: Path, target: CapturedTarget) -> None:
    document = whole(DOCUMENTS[2])
    (sample,) = target.capture([document])
    tokens = torch.from_numpy(document.tokens)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        log_p = model(tokens[None]).logits[0].log_softmax(dim=-1)
    for shift in (0, 1, 2):
        rows = torch.arange(len(tokens) - 2)
        assert mean_nll(target, sample, shift) == pytest.approx(
            float(-log_p[rows, tokens[rows + shift]].mean()), rel=1e-4
        )


def test_the_probe_of_a_very_short_text(target: CapturedTarget) -> None:
    probe = probe_capture(target, Document(0, DOCUMENTS[0].tokens[:2], np.array([[0, 1]])))
    assert (probe.tokens, probe.next_nll) == (2, 0.0)
