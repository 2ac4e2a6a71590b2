"""On the real target: a draft with its first weights is accepted never, by the evaluator that judges trained ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftyard_api.spec import Draft, Target
from draftyard_trainer.chain import count_rounds, propose, summarise
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.data.vocabulary import DraftVocabulary
from draftyard_trainer.draft.config import derive
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate

MODEL = Path(__file__).parents[2] / "build/fixtures/smollm2-135m-instruct"
QUESTIONS = ("What is the capital of France?", "Write a haiku about rivers.", "How do I boil an egg?")
NEW_TOKENS = 24
STOP = 2


@pytest.mark.real
def test_a_random_draft_has_acceptance_length_one():
    if not MODEL.is_dir():
        pytest.skip("make fixtures: smollm2-135m-instruct is missing")
    files = locate(Target(model=f"file://{MODEL}"))
    target = CapturedTarget.load(files, "bfloat16", (2, 15, 27))
    tokenizer = load_tokenizer(MODEL, "smollm2", False)
    prompts = [
        np.array(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )
        for text in QUESTIONS
    ]
    ids = np.arange(8192, dtype=np.int64)
    draft = DraftModel(derive(files.config, Draft(), len(ids), (2, 15, 27)))
    draft.set_vocabulary(DraftVocabulary(ids, np.ones_like(ids), 49152))
    draft.initialise(seed=42)
    draft.attach_embedding(target.head.embed)
    counts = []
    for prompt, reply in zip(prompts, target.greedy(prompts, NEW_TOKENS, (STOP,)), strict=True):
        span = np.array([[len(prompt), len(reply)]])
        (sample,) = target.capture([Document(0, np.concatenate([prompt, reply]), span)])
        counts.append(count_rounds(sample.document.tokens, len(prompt), propose(draft, sample, 3, forced=False)))
    acceptance = summarise(counts)
    assert acceptance.rounds > 20
    assert acceptance.length == pytest.approx(1.0, abs=0.02)
