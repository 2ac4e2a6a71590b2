"""The target's head: found in any folder, with the target's own scale and cap, over vocabularies of any size."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.target.head import ROW_BLOCK, VOCABULARY_BLOCK, TargetHead

ROWS, COLUMNS = ROW_BLOCK["cpu"], VOCABULARY_BLOCK["cpu"]
V, H = 12, 4


def tensors(*names: str) -> dict[str, Tensor]:
    """One tensor per name, each filled with its own number."""
    return {
        name: torch.full((H,) if "norm" in name else (V, H), float(number + 1)) for number, name in enumerate(names)
    }


def write(folder: Path, *files: Mapping[str, Tensor]) -> Path:
    """A model folder of one file, or of several with an index."""
    if len(files) == 1:
        save_file(dict(files[0]), folder / "model.safetensors")
        return folder
    weight_map = {}
    for number, content in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        save_file(dict(content), folder / name)
        weight_map |= dict.fromkeys(content, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def head_of(lm_head: Tensor, **config: Any) -> TargetHead:
    return TargetHead(lm_head, lm_head, torch.ones(lm_head.shape[1]), config)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- Where it is -------------------------------------------------------------------------------------

LLAMA = tensors("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight", "model.norm.weight")


@pytest.mark.parametrize(
    ("content", "config", "numbers"),
    [
        pytest.param(tensors("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), {}, (3, 1, 2),
                     id="Llama"),
        pytest.param(tensors("model.embed_tokens.weight", "model.norm.weight"), {}, (1, 1, 2), id="no head: tied"),
        pytest.param(tensors("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
                     {"tie_word_embeddings": True}, (1, 1, 2), id="tied, with a copy that nobody reads"),
        pytest.param(tensors("language_model.model.embed_tokens.weight", "language_model.model.norm.weight",
                             "language_model.lm_head.weight"), {}, (3, 1, 2), id="nested in a larger model"),
        pytest.param(tensors("model.norm.weight", "model.language_model.embed_tokens.weight", "lm_head.weight",
                             "model.language_model.norm.weight"), {}, (3, 2, 4), id="another tower has a norm too"),
        pytest.param(tensors("transformer.wte.weight", "transformer.ln_f.weight", "transformer.wpe.weight"), {},
                     (1, 1, 2), id="GPT-2"),
        pytest.param({"gpt_neox.final_layer_norm.weight": torch.full((H,), 2.0), **tensors("gpt_neox.embed_in.weight"),
                      "embed_out.weight": torch.full((V, H), 3.0)}, {}, (3, 1, 2), id="GPT-NeoX"),
        pytest.param({"model.layers.0.norm.weight": torch.full((H,), 9.0), "embed_tokens.weight": torch.ones(V, H),
                      "norm.weight": torch.full((H,), 2.0)}, {}, (1, 1, 2), id="no prefix, norms of layers are others"),
    ],
)  # fmt: skip
def test_the_resolver(
    tmp_path: Path, content: Mapping[str, Tensor], config: Mapping[str, Any], numbers: tuple[int, int, int]
) -> None:
    head = TargetHead.from_folder(write(tmp_path, content), config)
    assert tuple(int(tensor.flatten()[0]) for tensor in (head.lm_head, head.embed, head.norm)) == numbers
    assert head.is_tied == (numbers[0] == numbers[1])
    assert head.lm_head.shape == head.embed.shape == (V, H)


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    head = TargetHead.from_folder(write(tmp_path, LLAMA, tensors("lm_head.weight")), {})
    assert (float(head.embed[0, 0]), float(head.norm[0]), float(head.lm_head[0, 0])) == (1, 3, 1)
    assert not head.is_tied


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(tensors("model.norm.weight", "lm_head.weight"),
                     r"embed_tokens\.weight or .*found: lm_head\.weight, model\.norm\.weight", id="no embedding"),
        pytest.param(tensors("model.embed_tokens.weight", "model.layers.0.norm.weight"),
                     r"\*norm\.weight or .*found: model\.embed_tokens\.weight", id="no final norm"),
        pytest.param(tensors("model.layers.0.mlp.weight"), "found: no tensor", id="nothing but layers"),
    ],
)  # fmt: skip
def test_the_resolver_says_what_it_found(tmp_path: Path, content: Mapping[str, Tensor], says: str) -> None:
    with pytest.raises(Failure, match=says) as caught:
        TargetHead.from_folder(write(tmp_path, content), {})
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="found: no tensor"):
        TargetHead.from_folder(tmp_path, {})


# -- A file of its own -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_comes_back_from_a_file(tmp_path: Path, is_tied: bool, dtype: torch.dtype) -> None:
    embed = random(V, H).to(dtype)
    lm_head = embed if is_tied else random(V, H, seed=1).to(dtype)
    config = {"final_logit_softcapping": 30.0, "rope_parameters": {"rope_theta": 1e5}, "eos_token_id": [1, 2]}
    head = TargetHead(lm_head, embed, random(H, seed=2).to(dtype), config)
    with (tmp_path / "target.safetensors").open("wb") as sink:
        head.write(sink)
    back = TargetHead.load(tmp_path / "target.safetensors")
    for name in ("lm_head", "embed", "norm"):
        assert torch.equal(getattr(back, name), getattr(head, name))
        assert getattr(back, name).dtype == dtype
    assert back.is_tied is is_tied
    assert back.config == config
    assert back.soft_cap == 30.0


def test_a_cut_off_file_is_an_error(tmp_path: Path) -> None:
    sink = io.BytesIO()
    head_of(random(V, H)).write(sink)
    content = sink.getvalue()
    (tmp_path / "target.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"no header|crc32c"):
        TargetHead.load(tmp_path / "target.safetensors")


def test_elsewhere_it_is_still_tied() -> None:
    moved = head_of(random(V, H)).to(torch.device("cpu"), torch.bfloat16)
    assert moved.is_tied
    assert moved.lm_head.dtype == moved.norm.dtype == torch.bfloat16


# -- Logits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({}, 40.0, id="plain"),
        pytest.param({"logits_scaling": 8.0}, 5.0, id="Granite divides"),
        pytest.param({"logit_scale": 0.25}, 10.0, id="Cohere multiplies"),
        pytest.param({"final_logit_softcapping": 30.0}, 30 * 0.8701, id="Gemma 2 caps"),
        pytest.param({"logit_scale": 0.5, "final_logit_softcapping": 30.0}, 30 * 0.58278, id="scaled, then capped"),
        pytest.param({"logits_scaling": None, "logit_scale": None, "final_logit_softcapping": None}, 40.0, id="nulls"),
    ],
)
def test_scale_and_cap(config: Mapping[str, Any], expected: float) -> None:
    head = head_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), **config)
    last = torch.tensor([[20.0, 3.0]])
    assert float(head.logits(last)[0, 0]) == pytest.approx(expected, rel=1e-4)
    assert float(head.logit_of(last, torch.tensor([0]))[0]) == pytest.approx(expected, rel=1e-4)


def test_logits_of_some_ids() -> None:
    head = head_of(random(V, H), logit_scale=0.3)
    last, ids = random(5, H, seed=1), torch.tensor([7, 0, 3])
    assert torch.allclose(head.logits(last, ids), head.logits(last)[:, ids])
    chosen = torch.tensor([1, 11, 0, 4, 4])
    assert torch.allclose(head.logit_of(last, chosen), head.logits(last)[torch.arange(5), chosen], atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, ROWS + 3])
@pytest.mark.parametrize("vocab_size", [V, COLUMNS, 2 * COLUMNS + 5])
def test_chunks_change_nothing(rows: int, vocab_size: int) -> None:
    head = head_of(random(vocab_size, H), final_logit_softcapping=4.0)
    last = random(rows, H, seed=1)
    labelled, logits = head.tok_lse(last), head.logits(last)
    assert labelled.tok.dtype == torch.int32
    assert labelled.lse.dtype == torch.float32
    assert torch.equal(labelled.tok.long(), logits.argmax(dim=-1))
    assert torch.allclose(labelled.lse, logits.logsumexp(dim=-1), atol=1e-5)


@pytest.mark.parametrize(
    "ties",
    [
        pytest.param([3, 9], id="in one chunk"),
        pytest.param([5, COLUMNS + 5], id="in two chunks"),
        pytest.param([COLUMNS, COLUMNS + 1], id="at the start of the second"),
    ],
)
def test_ties_go_to_the_lowest_id(ties: list[int]) -> None:
    lm_head = torch.zeros(COLUMNS + 10, H)
    lm_head[ties] = 1.0
    assert head_of(lm_head).tok_lse(torch.ones(2, H)).tok.tolist() == [ties[0]] * 2


def test_equal_logits_everywhere() -> None:
    labelled = head_of(torch.zeros(V, H)).tok_lse(torch.ones(1, H))
    assert labelled.tok.tolist() == [0]
    assert float(labelled.lse) == pytest.approx(2.4849, rel=1e-4)


def test_values_that_are_not_finite_show_in_lse() -> None:
    last = torch.ones(3, H)
    last[1, 2] = torch.nan
    labelled = head_of(random(V, H)).tok_lse(last)
    assert torch.isfinite(labelled.lse).tolist() == [True, False, True]
    assert int(labelled.tok[1]) < V
