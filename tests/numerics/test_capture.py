"""What is captured is what transformers computes: layers, final states, logits, for every family; and on real text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from draftyard_api.names import Stage
from draftyard_api.spec import Data, DataSource, Draft, Export, FileSource, Target, Train
from draftyard_api.task import GenerateTask, PrepareTask, StoredStatesRef
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.generate import generate
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.source import OnlineSource
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.target.location import locate
from draftyard_trainer.testing import FAMILIES, SHAPE

torch.set_num_threads(1)
LAYERS = (2, 4, 5, 7)
FIXTURES = Path(__file__).parents[2] / "build/fixtures"
SMOLLM2 = FIXTURES / "smollm2-135m-instruct"
SHAREGPT = FIXTURES / "sharegpt.json"

LATENT: Mapping[str, Any] = {
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}  # fmt: skip
SCALED: Mapping[str, Mapping[str, Any]] = {
    "granite": {"model_type": "granite", "logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.0625},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 16},
    "gemma2, short window": {**FAMILIES["gemma2"], "sliding_window": 8},
    "gpt_oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": None},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "phi3": {"model_type": "phi3"},  # Phi-3 and Phi-4: projections side by side in one matrix
    "deepseek_v3": {
        **LATENT,
        "model_type": "deepseek_v3",
        "q_lora_rank": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    },
    "bailing_hybrid": {  # Ling 3: latent and linear attention take turns
        **LATENT,
        "model_type": "bailing_hybrid",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_group_size": 2,
    },
    "gemma3, whole": {  # the text model inside of one that sees
        "model_type": "gemma3",
        "text_config": {**SHAPE, "model_type": "gemma3_text", "sliding_window": 16},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    },
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt2": {"model_type": "gpt2", "n_layer": 8, "n_head": 4, "n_embd": 32},
}
"""Families with a scale, a cap, windows, other names of modules, or other kinds of attention."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A target with what it captures, and what transformers says of the same documents."""

    target: CapturedTarget
    model: Any
    folder: Path


def save_model(folder: Path, settings: Mapping[str, Any]) -> Path:
    """A causal LM with seeded random weights."""
    torch.manual_seed(0)
    shape = {} if "text_config" in settings else SHAPE
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**shape, **settings})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[*FAMILIES, *SCALED])
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    settings = FAMILIES.get(request.param) or SCALED[request.param]
    folder = save_model(tmp_path_factory.mktemp("target"), settings)
    target = CapturedTarget.load(locate(Target(model=f"file://{folder}")), "float32", LAYERS)
    return Captured(target, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder)


def documents() -> list[Document]:
    """Three documents of different length, each with two answers."""
    made = []
    for doc_id, length in enumerate((41, 19, 64)):
        tokens = np.random.default_rng(doc_id).integers(3, 384, length)
        made.append(Document(doc_id, tokens, np.array([[3, 5], [length - 6, 6]])))
    return made


@torch.no_grad()
def states_of(model: Any, document: Document) -> tuple[Tensor, Tensor, Tensor]:
    """`hidden_states[k]` side by side, the input of the head, and the logits, `[n, ..]` each; documents one by one."""
    inputs: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    ids = torch.from_numpy(document.tokens)[None]
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    handle.remove()
    return torch.cat([output.hidden_states[layer][0] for layer in LAYERS], dim=-1), inputs[0][0], output.logits[0]


@pytest.mark.parametrize("batch_tokens", [1, 10_000], ids=["alone", "padded"])
def test_states_are_those_of_the_model(captured: Captured, batch_tokens: int) -> None:
    captured.target.batch_tokens = batch_tokens
    for document, sample in zip(documents(), captured.target.capture(documents()), strict=True):
        aux, last, logits = states_of(captured.model, document)
        rows = torch.from_numpy(document.label_rows())
        scale = float(aux.abs().max())
        assert float((sample.aux - aux).abs().max()) < 1e-5 * scale
        assert float((sample.last - last[rows]).abs().max()) < 1e-5 * float(last.abs().max())
        assert torch.equal(sample.tok.long(), logits[rows].argmax(dim=-1))
        assert torch.allclose(sample.lse, logits[rows].logsumexp(dim=-1), atol=1e-4)
        assert torch.allclose(captured.target.head.logits(sample.last), logits[rows], atol=1e-4)


def test_the_head_in_the_files_is_the_one_in_the_model(captured: Captured) -> None:
    head = TargetHead.from_folder(captured.folder, captured.target.head.config)
    for name in ("lm_head", "embed", "norm"):
        assert torch.equal(getattr(head, name), getattr(captured.target.head, name))
    assert head.is_tied == captured.target.head.is_tied


def test_replies_are_those_of_one_by_one(captured: Captured) -> None:
    prompts = [document.tokens[:length] for document, length in zip(documents(), (11, 3, 30), strict=True)]
    together = captured.target.greedy(prompts, 16, (2,))
    for prompt, reply in zip(prompts, together, strict=True):
        (alone,) = captured.target.greedy([prompt], 16, (2,))
        assert reply.tolist() == alone.tolist()
        with torch.no_grad():
            logits = captured.model(torch.from_numpy(np.concatenate([prompt, reply]))[None]).logits[0]
        assert reply.tolist() == logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """Its experts are stored as MXFP4: they are turned into plain matrices as they are loaded."""
    folder = save_model(tmp_path, SCALED["gpt_oss"])
    weights, drawn = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, width, rows = weights.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), generator=drawn)
        weights[f"{name}_blocks"] = blocks.to(torch.uint8)
        weights[f"{name}_scales"] = torch.full((experts, rows, width // 32), 120, dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    target = CapturedTarget.load(locate(Target(model=f"file://{folder}")), "float32", LAYERS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for document, sample in zip(documents(), target.capture(documents()), strict=True):
        aux, last, _ = states_of(model, document)
        assert torch.allclose(sample.aux, aux, rtol=1e-5, atol=1e-5 * float(aux.abs().max()))
        assert torch.allclose(sample.last, last[torch.from_numpy(document.label_rows())], rtol=1e-4, atol=1e-4)


# -- Real text ---------------------------------------------------------------------------------------


def require(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"make fixtures: {path.name} is missing")


@pytest.fixture(scope="module")
def smollm2() -> CapturedTarget:
    require(SMOLLM2)
    return CapturedTarget.load(locate(Target(model=f"file://{SMOLLM2}")), "bfloat16", (2, 15, 27))


@dataclass(frozen=True)
class RealData:
    """A few real conversations, prepared."""

    store: LocalStore
    target: Target
    prepared: str

    def dataset(self) -> PreparedDataset:
        return PreparedDataset.open(self.store, self.prepared)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealData:
    require(SHAREGPT)
    require(SMOLLM2)
    store, target = LocalStore(tmp_path_factory.mktemp("workspace")), Target(model=f"file://{SMOLLM2}")
    data = Data(
        source=DataSource(file=FileSource(uri=f"file://{SHAREGPT}")), max_samples=8, max_length=192, eval_fraction=0.2
    )
    task = PrepareTask(
        run="real", uid="u", workspace=store.uri, target=target, mode="Offline", draft=Draft(vocab_size=1024),
        data=data, train=Train(row_tokens=512, tokens_per_batch=512), evaluates=False, export=Export(),
        frozen_sha256="f",
    )  # fmt: skip
    prepared = prepare(task, Reporter(Stage.PREPARE)).prepared
    assert prepared is not None
    return RealData(store, target, prepared.prepared)


@pytest.mark.real
def test_real_states_are_those_of_the_model(smollm2: CapturedTarget, real: RealData) -> None:
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    dataset = real.dataset()
    for doc_id in range(3):
        document = dataset.document(doc_id)
        (sample,) = smollm2.capture([document])
        with torch.no_grad():
            output = model(torch.from_numpy(document.tokens)[None], output_hidden_states=True)
        rows = torch.from_numpy(document.label_rows())
        expected = torch.cat([output.hidden_states[layer][0] for layer in (2, 15, 27)], dim=-1)
        # massive activations of the first token: rounding is relative
        assert torch.allclose(sample.aux.float(), expected, rtol=2**-7, atol=1e-3)
        assert float(expected.abs().max()) > 1000
        assert torch.allclose(sample.last.float(), output.hidden_states[-1][0][rows], rtol=2**-7, atol=1e-3)
        exact = output.logits[0][rows]
        assert float((sample.tok.long() == exact.argmax(dim=-1)).float().mean()) > 0.97
        assert float((sample.lse - exact.logsumexp(dim=-1)).abs().mean()) < 0.05


@pytest.mark.real
def test_real_samples_online_are_those_offline_bit_for_bit(smollm2: CapturedTarget, real: RealData) -> None:
    dataset = real.dataset()
    task = GenerateTask(
        run="real", uid="u", workspace=real.store.uri, target=real.target, prepared=real.prepared,
        aux_layers=(2, 15, 27), codec="none", num_shards=1, shard=0,
    )  # fmt: skip
    states = generate(task, Reporter(Stage.GENERATE)).hidden_states
    assert states is not None
    assert states.documents == len(dataset) >= 4
    offline = open_stored(real.store, StoredStatesRef(key=states.key, shards=(0,), num_shards=1), dataset)
    online = OnlineSource(smollm2, dataset)
    ids = list(reversed(range(len(dataset))))
    for one, other in zip(online.samples(ids), offline.samples(ids), strict=True):
        assert one.document.tokens.tolist() == other.document.tokens.tolist()
        for name in ("aux", "last", "tok", "lse"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    for name in ("lm_head", "embed", "norm"):
        assert torch.equal(getattr(online.head, name), getattr(offline.head, name).float())


@pytest.mark.real
def test_real_replies_are_those_of_one_by_one(smollm2: CapturedTarget, real: RealData) -> None:
    dataset = real.dataset()
    prompts = [dataset.prompt(doc_id)[-40:] for doc_id in range(3)]
    together = smollm2.greedy(prompts, 12, dataset.manifest.stop_ids)
    assert [reply.tolist() for reply in together] == [
        smollm2.greedy([prompt], 12, dataset.manifest.stop_ids)[0].tolist() for prompt in prompts
    ]
