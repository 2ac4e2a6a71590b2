"""The presets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from draftyard_trainer.data.presets.preset import Preset, Published, Row, as_it_is, columns, pair


def with_system(row: Row) -> Row:
    """A system prompt beside the turns, which are spelt as in ShareGPT."""
    turns: list[Any] = list(row["conversations"])
    if row.get("system"):
        turns = [{"from": "system", "value": row["system"]}, *turns]
    return {"conversations": turns}


MATHEMATICS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
ALL = (
    Preset(
        "sharegpt", "what people asked ChatGPT in 2023: many turns, many languages", "none stated", as_it_is,
        (Published("anon8231489123/ShareGPT_Vicuna_unfiltered", files="ShareGPT_V3_unfiltered_cleaned_split.json"),),
    ),
    Preset(
        "ultrachat", "208,000 written dialogues, filtered", "mit", columns("messages", "prompt_id"),
        (Published("HuggingFaceH4/ultrachat_200k", split="train_sft"),),
    ),
    Preset(
        "perfectblend", "1.4 million rows of chat, mathematics, code and instructions", "apache-2.0", as_it_is,
        (Published("mlabonne/open-perfectblend"),),
    ),
    Preset(
        "magpie-qwen", "a million single turns that Qwen2.5-72B wrote", "qwen", columns("conversations", "uuid"),
        (Published("Magpie-Align/Magpie-Qwen2.5-Pro-1M-v0.1"),),
    ),
    Preset(
        "magicoder", "110,000 programming tasks", "apache-2.0", pair("instruction", "response"),
        (Published("ise-uiuc/Magicoder-Evol-Instruct-110K"),),
    ),
    Preset(
        "opc", "4.2 million programming tasks, three collections", "mit", pair("instruction", "output"),
        tuple(
            Published("OpenCoder-LLM/opc-sft-stage1", config)
            for config in ("largescale_diverse_instruct", "filtered_infinity_instruct", "realuser_instruct")
        ),
    ),
    Preset(
        "gsm8k", "7,473 school mathematics problems", "mit", pair("question", "answer"),
        (Published("openai/gsm8k", "main"),),
    ),
    Preset(
        "hendrycks-math", "7,500 competition problems with solutions, seven subjects", "mit",
        pair("problem", "solution"), tuple(Published("EleutherAI/hendrycks_math", subject) for subject in MATHEMATICS),
    ),
    Preset(
        "code-alpaca", "20,000 small programming tasks", "cc-by-4.0", pair("instruction", "output", more="input"),
        (Published("sahil2801/CodeAlpaca-20k"),),
    ),
    Preset(
        "camel", "60,000 science problems of a role play: biology, chemistry, physics", "cc-by-nc-4.0",
        pair("message_1", "message_2"),
        tuple(Published(f"camel-ai/{subject}") for subject in ("biology", "chemistry", "physics")),
    ),
    Preset(
        "openthoughts", "114,000 reasoning traces of DeepSeek-R1", "apache-2.0", with_system,
        (Published("open-thoughts/OpenThoughts-114k"),),
    ),
    Preset(
        "eaglechat", "a million dialogues in English and Chinese, mixed for draft models", "apache-2.0", as_it_is,
        (Published("zhaode/EagleChat"),),
    ),
    Preset(
        "math500", "500 competition problems", "mit", pair("problem", "solution", identity="unique_id"),
        (Published("HuggingFaceH4/MATH-500", split="test"),),
    ),
    Preset(
        "humaneval", "164 functions to complete, and their bodies", "mit",
        pair("prompt", "canonical_solution", identity="task_id"),
        (Published("openai/openai_humaneval", split="test"),),
    ),
)  # fmt: skip
PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in ALL}
