"""Capturing hidden states against a bare forward of the same model, in turns in one process.

    python bench/capture.py --out build/bench/capture.json

The target and the conversations are real (SmolLM2, ShareGPT). `bare` runs the blocks and the final norm and keeps
nothing; `copies` adds hooks and the copies of what they see; `stored` adds labels and writes a shard.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import track

import inputs
from draftyard_api.spec import Target
from draftyard_trainer.data.document import Document
from draftyard_trainer.hidden_states.codec import Layout, StateCodec
from draftyard_trainer.hidden_states.shard import CapturedPart, Shard
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target.capture import CapturedTarget, length_batches
from draftyard_trainer.target.head import TargetHead, TokLse
from draftyard_trainer.target.location import locate

AUX_LAYERS = (2, 15, 27)
DOCUMENTS = 16
LONGEST = 1024
ROUNDS = 5


class Unlabelled(TargetHead):
    """A head that makes no labels."""

    def tok_lse(self, last_rH: torch.Tensor) -> TokLse:
        """Nothing, of the right shape."""
        return TokLse(last_rH.new_zeros(len(last_rH), dtype=torch.int32), last_rH.new_zeros(len(last_rH)))


def documents(model: Path, conversations: Path) -> list[Document]:
    """Documents with real lengths and masks; their tokens do not matter to the time."""
    lengths = inputs.real_lengths(model, conversations, LONGEST)[:DOCUMENTS]
    generator = torch.Generator().manual_seed(0)
    return [
        Document(number, torch.randint(0, 49152, (each.num_tokens,), generator=generator).numpy(), each.spans)
        for number, each in enumerate(lengths)
    ]


@torch.no_grad()
def bare(target: CapturedTarget, given: Sequence[Document]) -> None:
    """The same batches through the model, without its head."""
    for places in length_batches([document.num_tokens for document in given], target.batch_tokens):
        longest = max(given[place].num_tokens for place in places)
        ids = torch.zeros(len(places), longest, dtype=torch.int64)
        for row, place in enumerate(places):
            ids[row, : given[place].num_tokens] = torch.from_numpy(given[place].tokens)
        target._decoder.backbone(input_ids=ids.to(target.device), use_cache=False)


@contextmanager
def unlabelled(target: CapturedTarget) -> Iterator[None]:
    """Inside, the target makes no labels."""
    head = target.head
    target.head = Unlabelled(head.lm_head, head.embed, head.norm, head.config)
    try:
        yield
    finally:
        target.head = head


def copies(target: CapturedTarget, given: Sequence[Document]) -> None:
    """Hooks and copies only."""
    with unlabelled(target):
        target.capture(given)


def stored(target: CapturedTarget, given: Sequence[Document]) -> None:
    """Captured, labelled, and written with codec none."""
    with tempfile.TemporaryDirectory(dir="build") as folder:
        codec = StateCodec.of(Layout(len(AUX_LAYERS), target.head.lm_head.shape[1], target.dtype), None)
        samples = map(codec.pack, target.capture(given))
        Shard(LocalStore(Path(folder)), "shard").commit(0, CapturedPart(samples), codec)


def measure(target: CapturedTarget, given: Sequence[Document]) -> dict[str, float]:
    """Median seconds of each way, in turns."""
    ways: dict[str, Callable[[CapturedTarget, Sequence[Document]], None]] = {
        "bare": bare, "copies": copies, "stored": stored,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(ROUNDS + 1), description="capture"):
        for name, way in ways.items():
            started = time.perf_counter()
            way(target, given)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Measure, and write one JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("build/fixtures/smollm2-135m-instruct"))
    parser.add_argument("--conversations", type=Path, default=Path("build/fixtures/sharegpt.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    files = locate(Target(model=f"file://{arguments.model.resolve()}"))
    target = CapturedTarget.load(files, "bfloat16", AUX_LAYERS)
    given = documents(arguments.model, arguments.conversations)
    report = {
        "tokens": sum(document.num_tokens for document in given),
        "label_rows": sum(len(document.label_rows()) for document in given),
        "seconds": measure(target, given),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
