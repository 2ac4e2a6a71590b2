"""One training by a peer, in a process of its own environment: from the first weights to the last, on the same rows.

    bench/.venv-bench-specforge/bin/python bench/peer_training.py specforge FOLDER SEED

Reads what `quality.py` wrote into the folder; leaves the peer's tensors, and its first choices on the probe document.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipe import CHOICES, TARGET_FILE, Plan, plan_file, start_file, trained_file

TABLES = ("embed_tokens", "verifier", "rotary")
"""In the names of tensors that a peer keeps beside its draft: they are the target's, or computed."""
TOLD_EVERY = 20


def read(states: Any, place: int) -> dict[str, Tensor]:
    """One document as peers take it: `last` is `[n, H]`, zero before the rows that are stored."""
    found = {name: states.get_tensor(f"{name}.{place}") for name in ("tokens", "spans", "aux", "last")}
    ((start, length),) = found["spans"].tolist()
    stored = found["last"].float()
    tokens = len(found["tokens"])
    # Stored are the answer, the row before it and the row behind; an answer ends its document.
    if start + length != tokens or len(stored) != tokens - max(start - 1, 0):
        raise ValueError(f"document {place}: one answer, at the end, is expected")
    last = stored.new_zeros(tokens, stored.shape[1])
    last[tokens - len(stored) :] = stored
    return {**found, "aux": found["aux"].float(), "last": last}


@torch.no_grad()
def choices(learner: Any, document: dict[str, Tensor]) -> Tensor:
    """Its first choice at every row and step, fed with the true tokens: `[T, n - 1]` draft ids."""
    seen: list[Tensor] = []
    handle = learner.head.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.argmax(-1)[0]))
    learner.forward([document])
    handle.remove()
    rows = len(document["tokens"]) - 1
    return torch.stack([step[:rows] for step in seen])


def train(trainer: str, folder: Path, seed: int) -> dict[str, Any]:
    """All steps. Returns what is told of them."""
    plan = Plan.read(plan_file(folder, seed))
    build = importlib.import_module(f"{trainer}_recipe").build
    learner = build(plan, load_file(start_file(folder, seed)), load_file(folder / TARGET_FILE))
    seconds, losses = 0.0, []
    with safe_open(plan.states, "pt") as states:
        for number, places in enumerate(plan.steps):
            documents = [read(states, place) for place in places]
            started = time.process_time()
            losses.append(learner.step(documents))
            seconds += time.process_time() - started
            if (number + 1) % TOLD_EVERY == 0:
                print(f"{trainer} {seed}: step {number + 1} of {len(plan.steps)}, {losses[-1]:.3f}", file=sys.stderr)
        chosen = choices(learner, read(states, plan.probe))
    own = {name: tensor for name, tensor in learner.state().items() if not any(table in name for table in TABLES)}
    kept = {name: tensor.detach().clone() for name, tensor in own.items()}
    save_file({**kept, CHOICES: chosen}, trained_file(folder, trainer, seed))
    return {"seconds": seconds, "first_loss": losses[0], "last_loss": losses[-1], "torch": torch.__version__}


def main() -> None:
    """Train, and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer", choices=("specforge", "speculators"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(train(arguments.trainer, arguments.folder, arguments.seed)))


if __name__ == "__main__":
    main()
