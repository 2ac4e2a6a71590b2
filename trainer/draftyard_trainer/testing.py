"""Tiny targets with random weights, and a tokenizer with a chat template: what tests build their worlds from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase, digits
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = (
    "the quick brown fox jumps over a lazy dog while seven bright stars shine on quiet hills and rivers flow "
    "down to the sea where old ships sleep and young sailors sing songs of wind and home"
).split()

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
    "gemma2": {
        "model_type": "gemma2",
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "query_pre_attn_scalar": 8,
        "sliding_window": 64,
    },
}
"""What makes each architecture differ from `SHAPE`, whose `initializer_range` is large so that answers differ."""


def words(count: int, seed: int) -> str:
    """A sentence of `count` words that depends on the seed alone."""
    return " ".join(WORDS[(seed * 7 + index * (3 + seed % 5)) % len(WORDS)] for index in range(count))


def write_tokenizer(folder: Path, chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 384 tokens, trained on `WORDS`, saved to `folder`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([words(200, seed) for seed in range(20)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_target(folder: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """A tiny causal LM of one architecture with seeded random weights and a tokenizer, as a hub folder."""
    settings = {**SHAPE, **FAMILIES[family], **overrides}
    config = AutoConfig.for_model(**settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def speak_plainly(folder: Path) -> Path:
    """Make a target say nothing but capital letters, digits and its stop token: text that has one spelling in tokens.

    They are in no word that the tokenizer was trained on, so none of them is a part of a longer token.
    """
    weights = load_file(folder / "model.safetensors")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    plain = {number for token, number in vocabulary.items() if len(token) == 1 and token in ascii_uppercase + digits}
    stop, head = vocabulary[SPECIAL_TOKENS[2]], weights["lm_head.weight"]
    head[[number for number in range(len(head)) if number not in plain | {stop}]] = 0.0
    # so that some answers end, and some are cut
    head[stop] *= 1.6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_conversations(path: Path, count: int = 40, turns: int = 2) -> Path:
    """A ShareGPT-like JSON file of `count` conversations with `turns` questions and answers each."""
    rows = [
        {
            "id": f"conversation-{row}",
            "conversations": [
                {"from": speaker, "value": words(4 + (row + turn) % 9, seed=row * 31 + turn * 2 + offset)}
                for turn in range(turns)
                for offset, speaker in enumerate(("human", "gpt"))
            ],
        }
        for row in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path
