"""The target's head: its output matrix, embeddings and final norm, found in any folder of safetensors.

With these and the stored states the trainer needs no target: `target.safetensors` beside stored states holds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.storage.sealed import CRC, ZEROS, check_tensors, write_tensors

# r label rows, V vocabulary, H width of the target

ROW_BLOCK = {"cpu": 512, "cuda": 4096}
VOCABULARY_BLOCK = {"cpu": 2048, "cuda": 32768}
"""Logits that exist at once: 4 MB on a CPU, which stay in its cache, and 512 MB on a GPU, which keep it busy."""
HEAD, EMBEDDING, NORM = "lm_head.weight", "embed_tokens.weight", "norm.weight"
HEADS = (HEAD, "embed_out.weight", "output.weight")
EMBEDDINGS = (EMBEDDING, "wte.weight", "embed_in.weight", "word_embeddings.weight")
NORMS = (NORM, "final_layernorm.weight", "final_layer_norm.weight", "ln_f.weight", "norm_f.weight")
"""Most families first; the others are GPT-NeoX, GPT-2, Falcon and their kin."""
INDEX = "model.safetensors.index.json"
SHOWN_NAMES = 20


@dataclass(frozen=True, eq=False)
class TokLse:
    """Per row: argmax over the whole vocabulary (int32, ties to the lowest id) and logsumexp (fp32)."""

    tok: Tensor
    lse: Tensor


@dataclass(frozen=True, eq=False)
class TargetHead:
    """What turns a final hidden state into logits, and a token into an embedding."""

    lm_head: Tensor
    """`[V, H]`; the embedding itself where the target ties them."""
    embed: Tensor
    """`[V, H]`."""
    norm: Tensor
    """`[H]`: weight of the final norm, as it is stored."""
    config: Mapping[str, Any]
    """The target's text config."""

    @property
    def logit_scale(self) -> float:
        """Factor of the logits before any cap (Granite divides by `logits_scaling`, Cohere multiplies)."""
        if self.config.get("logits_scaling"):
            return 1.0 / float(self.config["logits_scaling"])
        return float(self.config.get("logit_scale") or 1.0)

    @property
    def soft_cap(self) -> float | None:
        """`c` of `c * tanh(z / c)`, or None."""
        cap = self.config.get("final_logit_softcapping")
        return float(cap) if cap else None

    def cap(self, raw: Tensor) -> Tensor:
        """Scale and cap of raw fp32 logits, as the target's own forward does."""
        scaled = raw * self.logit_scale if self.logit_scale != 1.0 else raw
        return scaled if self.soft_cap is None else self.soft_cap * torch.tanh(scaled / self.soft_cap)

    def logits(self, last_rH: Tensor, ids: Tensor | None = None) -> Tensor:
        """fp32 logits of the rows, `[r, V]`, or of the target ids `ids` only."""
        weight = self.lm_head if ids is None else self.lm_head[ids.to(self.lm_head.device)]
        return self.cap(product(last_rH.to(weight.device, weight.dtype), weight))

    def logit_of(self, last_rH: Tensor, ids_r: Tensor) -> Tensor:
        """fp32 logit of one token per row, `[r]`."""
        weight_rH = self.lm_head[ids_r.to(self.lm_head.device)].float()
        return self.cap((last_rH.to(weight_rH) * weight_rH).sum(-1))

    def tok_lse(self, last_rH: Tensor) -> TokLse:
        """Argmax and logsumexp over the whole vocabulary, block by block: never `[r, V]` at once."""
        rows = last_rH.to(self.lm_head.device, self.lm_head.dtype)
        size = ROW_BLOCK[rows.device.type]
        buffer = rows.new_empty(min(size, len(rows)) * VOCABULARY_BLOCK[rows.device.type], dtype=torch.float32)
        parts = [self._tok_lse(block, buffer) for block in rows.split(size)]
        return TokLse(torch.cat([part.tok for part in parts]), torch.cat([part.lse for part in parts]))

    def _tok_lse(self, rows: Tensor, buffer: Tensor) -> TokLse:
        """Of one block of rows; every block of logits is made in the one buffer, which is warm."""
        best = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)
        tok = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        mass = torch.zeros_like(best)
        size = VOCABULARY_BLOCK[rows.device.type]
        for start in range(0, len(self.lm_head), size):
            weight = self.lm_head[start : start + size]
            logits = self.cap(product(rows, weight, buffer[: len(rows) * len(weight)].view(len(rows), len(weight))))
            # Of equal values max takes the first, and a later block must be above it.
            top, column = logits.max(dim=-1)
            tok = torch.where(top > best, column + start, tok)
            higher = torch.maximum(best, top)
            mass = mass * (best - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(-1)
            best = higher
        return TokLse(tok.to(torch.int32), mass.log() + best)

    def to(self, device: torch.device, dtype: torch.dtype) -> TargetHead:
        """The same head elsewhere; a tied one stays one tensor."""
        embed = self.embed.to(device, dtype)
        lm_head = embed if self.is_tied else self.lm_head.to(device, dtype)
        return TargetHead(lm_head, embed, self.norm.to(device, dtype), self.config)

    @property
    def is_tied(self) -> bool:
        """Whether output matrix and embedding are one tensor."""
        return self.lm_head.data_ptr() == self.embed.data_ptr()

    def write(self, sink: BinaryIO) -> None:
        """Write one safetensors file, the config in its header; a tied head is in it once."""
        tensors = {EMBEDDING: self.embed, NORM: self.norm}
        if not self.is_tied:
            tensors[HEAD] = self.lm_head
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        config = json.dumps(dict(self.config), sort_keys=True)
        write_tensors(save(plain, metadata={"format": "pt", "config": config, CRC: ZEROS}), sink)

    @classmethod
    def load(cls, path: Path) -> TargetHead:
        """Read what `write` wrote. Raises ValueError for anything else."""
        with path.open("rb") as content:

            def read(offset: int, length: int) -> bytes:
                content.seek(offset)
                return content.read(length)

            check_tensors(read, path.stat().st_size)
        try:
            with safe_open(path, "pt") as file:
                config = json.loads((file.metadata() or {})["config"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            embed, norm = tensors[EMBEDDING], tensors[NORM]
        except (SafetensorError, KeyError, RecursionError) as error:
            raise ValueError(f"no head of a target ({error})") from error
        head = cls(tensors.get(HEAD, embed), embed, norm, config)
        if not isinstance(config, dict) or embed.ndim != 2 or head.lm_head.shape[1:] != embed.shape[1:]:
            raise ValueError("a head, embeddings and a config that do not fit together")
        return head

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> TargetHead:
        """Find the three tensors in a model folder: one file or an index, names nested in any prefix, head maybe tied.

        Raises Failure(UNSUPPORTED) listing what was found instead.
        """
        names = tensor_files(folder)
        embedding = pick(names, EMBEDDINGS)
        if embedding is None:
            raise missing(folder, names, EMBEDDINGS)
        norm = beside(names, embedding, NORMS) or pick(names, NORMS)
        if norm is None:
            raise missing(folder, names, NORMS)
        embed = read_tensor(folder, names, embedding)
        # a tied target may store a copy of the head, which its own forward does not read
        head = None if config.get("tie_word_embeddings") else pick(names, HEADS)
        lm_head = embed if head is None else read_tensor(folder, names, head)
        return cls(lm_head, embed, read_tensor(folder, names, norm), dict(config))


def product(rows: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`rows @ weight.T` in fp32, summed and left in fp32 where the device can do that for 16-bit factors.

    `out` is a place for it, fp32 and of its shape; fp32 factors use it.
    """
    if rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    if out is not None and rows.dtype == torch.float32:
        return torch.mm(rows, weight.T, out=out)
    return (rows @ weight.T).float()


# -- Tensors of a model folder --------------------------------------------------------------------


def tensor_files(folder: Path) -> dict[str, str]:
    """Which file holds which tensor, by the index or by the headers."""
    index = folder / INDEX
    if index.is_file():
        mapping: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        return mapping
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update(dict.fromkeys(file.keys(), path.name))
    return found


def pick(names: Mapping[str, str], suffixes: Sequence[str]) -> str | None:
    """The shortest tensor name outside the layers that ends with the first suffix that any has."""
    for suffix in suffixes:
        fits = [name for name in names if f".{name}".endswith(f".{suffix}") and not is_in_layer(name)]
        if fits:
            return min(fits, key=len)
    return None


def is_in_layer(name: str) -> bool:
    """Whether a tensor belongs to one of many like blocks: its name has a number in it."""
    return any(part.isdecimal() for part in name.split("."))


def beside(names: Mapping[str, str], embedding: str, suffixes: Sequence[str]) -> str | None:
    """The tensor in the module that holds the embedding: a vision tower may have a final norm of its own."""
    parent = embedding.rsplit(".", 2)[0] if embedding.count(".") > 1 else ""
    wanted = (f"{parent}.{suffix}" if parent else suffix for suffix in suffixes)
    return next((name for name in wanted if name in names), None)


def read_tensor(folder: Path, names: Mapping[str, str], name: str) -> Tensor:
    """One tensor of the folder."""
    with safe_open(folder / names[name], "pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def missing(folder: Path, names: Mapping[str, str], suffixes: Sequence[str]) -> Failure:
    """A model folder without a tensor that is needed."""
    outside = sorted(name for name in names if not is_in_layer(name))
    found = ", ".join(outside[:SHOWN_NAMES]) or "no tensor"
    message = f"target.model: {folder} has no tensor named *{' or *'.join(suffixes)} in *.safetensors; found: {found}"
    return Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
