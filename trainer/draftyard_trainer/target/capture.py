"""The target as a source of hidden states: a frozen model with hooks, run without its head over whole documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from draftyard_api.schema import Dtype
from draftyard_trainer.data.document import Document, Ids
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.storage import access
from draftyard_trainer.target.anatomy import Decoder, find_decoder, require_layers
from draftyard_trainer.target.decoding import CachedText, decode, draw
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.target.location import TargetFiles, unsupported
from draftyard_trainer.target.sampling import Choice
from draftyard_trainer.target.tensor_parallel import ALONE, Order, Ranks, whole

# B documents of a batch, T its longest, N tokens of it without padding, r label rows, A captured layers, H width

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CUDA_BATCH_TOKENS = 16384
"""Padded tokens of a batch on a GPU. Sorted by length, padding is about 0.1 % of them."""
CPU_BATCH_TOKENS = 1
"""On a CPU every document goes alone: batches are no faster there, and so a document has the same bits wherever it is
captured."""
HEAD_CHECK_TOKENS = 8
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference to the model's own logits, as a share of the largest logit."""


def default_device() -> torch.device:
    """The GPU of this process's rank, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def compute_dtype(device: torch.device, dtype: str) -> torch.dtype:
    """What the target computes in: its own dtype on a GPU; float32 on a CPU, which is faster there."""
    return DTYPES[dtype] if device.type == "cuda" else torch.float32


class CapturedTarget:
    """A loaded target. States are rounded to `target.dtype`, whatever it computes in."""

    def __init__(
        self,
        model: Any,
        decoder: Decoder,
        files: TargetFiles,
        dtype: Dtype,
        aux_layers: tuple[int, ...],
        ranks: Ranks = ALONE,
    ) -> None:
        self.identity = files.identity
        self.head = head_of(model, decoder, files)
        self.ranks = ranks
        self.device: torch.device = self.head.lm_head.device
        self.aux_layers = aux_layers
        self.dtype = DTYPES[dtype]
        self.batch_tokens = CUDA_BATCH_TOKENS if self.device.type == "cuda" else CPU_BATCH_TOKENS
        self._model = model
        self._decoder = decoder
        self._has_halved = False

    @classmethod
    def load(
        cls,
        files: TargetFiles,
        dtype: Dtype,
        aux_layers: tuple[int, ...],
        device: torch.device | None = None,
        ranks: Ranks = ALONE,
    ) -> CapturedTarget:
        """Load the weights, find blocks and head, and compare their logits with the model's own.

        With several `ranks`, process 0 calls this, and the others `follow`.

        Raises Failure(UNSUPPORTED) for a model that transformers cannot load, that lacks tensors or layers, or whose
        logits are not made from its final norm and its head alone.
        """
        device = device or default_device()
        require_layers(aux_layers, int(files.config["num_hidden_layers"]), files.model)
        ranks.order(Order.LOAD)
        model, decoder = load_decoder(files, dtype, device, ranks)
        target = cls(model, decoder, files, dtype, aux_layers, ranks)
        target.check_head(files)
        return target

    @torch.no_grad()
    def check_head(self, files: TargetFiles) -> None:
        """Raises Failure(UNSUPPORTED) when the head does not give the model's own logits: labels would be wrong."""
        ids_1T = torch.arange(HEAD_CHECK_TOKENS, device=self.device)[None]
        self.ranks.order(Order.MODEL, ids_1T)
        with self._watching((), self._decoder.norm) as seen:
            own: Tensor = self._model(input_ids=ids_1T, use_cache=False).logits[0].float()
        difference = relative_difference(self.head.logits(seen.last[0]), own)
        if difference > HEAD_TOLERANCE[self.head.lm_head.dtype]:
            why = (
                f"its logits are not those of its final norm and head (they differ by {difference:.1%} of the largest)"
            )
            raise unsupported(files.model, why)

    # -- Documents in, states out ------------------------------------------------------------------

    def capture(self, documents: Sequence[Document]) -> list[Sample]:
        """The states of each document, in the given order, on the target's device.

        Attention is causal and padding is on the right, so batches change nothing but the order of sums. Out of GPU
        memory, the batch is halved once for all.
        """
        try:
            return self._capture(documents)
        except torch.OutOfMemoryError:
            if self._has_halved:
                raise
            self._has_halved = True
            self.batch_tokens //= 2
        torch.cuda.empty_cache()
        return self._capture(documents)

    def _capture(self, documents: Sequence[Document]) -> list[Sample]:
        samples: dict[int, Sample] = {}
        for places in length_batches([document.num_tokens for document in documents], self.batch_tokens):
            batch = self._capture_batch([documents[place] for place in places])
            samples.update(zip(places, batch, strict=True))
        return [samples[place] for place in range(len(documents))]

    @torch.no_grad()
    def _capture_batch(self, documents: Sequence[Document]) -> list[Sample]:
        lengths = [document.num_tokens for document in documents]
        ids_BT = torch.zeros(len(documents), max(lengths), dtype=torch.int64)
        for row, document in enumerate(documents):
            ids_BT[row, : lengths[row]] = torch.from_numpy(document.tokens)
        blocks = [self._decoder.blocks[layer - 1] for layer in self.aux_layers]
        ids_BT = ids_BT.to(self.device)
        self.ranks.order(Order.BACKBONE, ids_BT)
        with self._watching(blocks, self._decoder.norm) as seen:
            self._decoder.backbone(input_ids=ids_BT, use_cache=False)
        aux_NAH = self._side_by_side(seen.aux, lengths)
        labels = [document.label_rows() for document in documents]
        rows_r = torch.from_numpy(np.concatenate([row * max(lengths) + own for row, own in enumerate(labels)]))
        last_rH = seen.last.flatten(0, 1)[rows_r.to(self.device)].to(self.dtype)
        # labels come from the rounded states: what is stored must explain them
        labelled = self.head.tok_lse(last_rH)
        token_ends, label_ends = np.cumsum(lengths)[:-1].tolist(), np.cumsum([len(own) for own in labels])[:-1].tolist()
        return [
            Sample(*fields)
            for fields in zip(
                documents,
                aux_NAH.tensor_split(token_ends),
                last_rH.tensor_split(label_ends),
                labelled.tok.tensor_split(label_ends),
                labelled.lse.tensor_split(label_ends),
                strict=True,
            )
        ]

    def _side_by_side(self, states: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Padded states `[B, T, H]` of A layers as `[N, A*H]` without padding, copied and rounded in one go."""
        width = states[0].shape[-1]
        aux_NAH = torch.empty(sum(lengths), len(states) * width, dtype=self.dtype, device=self.device)
        for layer, state_BTH in enumerate(states):
            parts = aux_NAH[:, layer * width : (layer + 1) * width].split(list(lengths))
            for part, state_TH in zip(parts, state_BTH, strict=True):
                part.copy_(state_TH[: len(part)])
        return aux_NAH

    @torch.no_grad()
    def hidden_states(self, tokens: Ids) -> tuple[Tensor, ...]:
        """What transformers itself calls `hidden_states` of one document, `[n, H]` each: the reference for captures."""
        ids_1T = torch.from_numpy(tokens)[None].to(self.device)
        self.ranks.order(Order.BACKBONE, ids_1T)
        output = self._decoder.backbone(input_ids=ids_1T, use_cache=False, output_hidden_states=True)
        return tuple(state_1TH[0] for state_1TH in output.hidden_states)

    # -- Prompts in, replies out --------------------------------------------------------------------

    def greedy(self, prompts: Sequence[Ids], max_new_tokens: int, stop_ids: Sequence[int]) -> list[Ids]:
        """The target's most likely reply to each prompt, its stop token included; ties go to the lowest id.

        All prompts run as one batch. Raises ValueError for an empty prompt.
        """
        return self._reply(
            lambda _places, _step, last_BH: self.head.tok_lse(last_BH).tok, prompts, max_new_tokens, stop_ids
        )

    def sampled(self, prompts: Sequence[Ids], stop_ids: Sequence[int], uniforms_BT: Tensor) -> list[Ids]:
        """A reply to each prompt, drawn from the target at temperature 1: token t of row b by `uniforms_BT[b, t]`."""

        def drawn(places: Sequence[int], step: int, last_BH: Tensor) -> Tensor:
            return draw(self.head.logits(last_BH), uniforms_BT[list(places), step])

        return self._reply(drawn, prompts, uniforms_BT.shape[1], stop_ids)

    @torch.no_grad()
    def _reply(
        self,
        choose: Callable[[Sequence[int], int, Tensor], Tensor],
        prompts: Sequence[Ids],
        max_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> list[Ids]:
        """Replies whose tokens are chosen by what the final norm gives, `[B, H]`."""

        def next_tokens(places: Sequence[int], step: int, inputs: dict[str, Any]) -> Tensor:
            with self._watching((), self._decoder.norm) as seen:
                self._decoder.backbone(**inputs, use_cache=True)
            return choose(places, step, seen.last[:, -1])

        limits = [max_new_tokens] * len(prompts)
        return decode(next_tokens, self._model.config, prompts, limits, stop_ids, self.device)

    def cached_text(self) -> CachedText:
        """An empty text to read, every token followed by the choice of the most likely next one, as in a server."""

        def backbone(**inputs: Any) -> None:
            with self._watching((), self._decoder.norm) as seen:
                self._decoder.backbone(**inputs)
            self.head.tok_lse(seen.last[0])

        return CachedText(backbone, self._model.config, self.device)

    @torch.no_grad()
    def say(
        self,
        prompts: Sequence[Ids],
        limits: Sequence[int],
        stop_ids: Sequence[int],
        choice: Choice,
        look: Callable[[], None],
    ) -> list[Ids]:
        """The target's reply to each prompt, its stop token included, at most as long as its limit.

        All prompts run as one batch; `look` is called before every token, and may end it. A reply whose last token is
        negative has met logits that are not finite. Raises ValueError for an empty prompt.
        """

        def next_tokens(places: Sequence[int], step: int, inputs: dict[str, Any]) -> Tensor:
            look()
            with self._watching((), self._decoder.norm) as seen:
                self._decoder.backbone(**inputs, use_cache=True)
            return choice.choose(self.head.logits(seen.last[:, -1]), places, step)

        return decode(next_tokens, self._model.config, prompts, limits, stop_ids, self.device)

    @contextmanager
    def _watching(self, blocks: Sequence[nn.Module], norm: nn.Module) -> Iterator[Seen]:
        """Collect the outputs of some blocks and of the final norm while the block of code runs."""
        seen = Seen([torch.empty(0)] * len(blocks), torch.empty(0))
        handles = [
            module.register_forward_hook(seen.keep(place))
            for place, module in [*enumerate(blocks), (-1, norm)]
        ]  # fmt: skip
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


@dataclass(eq=False)
class Seen:
    """Outputs of one forward: `aux[i]` of block i of those watched, `last` of the final norm; `[B, T, H]` each."""

    aux: list[Tensor]
    last: Tensor

    def keep(self, place: int) -> Any:
        """A hook that keeps a module's output: as `aux[place]`, or as `last` for -1."""

        def hook(_module: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if place < 0:
                self.last = state
            else:
                self.aux[place] = state

        return hook


def follow(files: TargetFiles, dtype: Dtype, ranks: Ranks) -> None:
    """Hold a part of the target and compute along with process 0, until it stops. Raises as `CapturedTarget.load`."""

    def load() -> tuple[Any, Any]:
        model, decoder = load_decoder(files, dtype, ranks.device, ranks)
        head_of(model, decoder, files)
        return decoder.backbone, model

    ranks.follow(load)


def load_decoder(files: TargetFiles, dtype: Dtype, device: torch.device, ranks: Ranks) -> tuple[Any, Decoder]:
    """The model, frozen, and where its blocks are. Raises Failure(UNSUPPORTED)."""
    model = load_model(files, compute_dtype(device, dtype), ranks).to(device).eval().requires_grad_(False)
    return model, find_decoder(model, int(files.config["num_hidden_layers"]), files.model)


def head_of(model: Any, decoder: Decoder, files: TargetFiles) -> TargetHead:
    """The model's head; all processes of a target call this together."""
    embed = whole(model.get_input_embeddings().weight.detach())
    output = model.get_output_embeddings().weight
    is_tied = output is model.get_input_embeddings().weight
    return TargetHead(
        lm_head=embed if is_tied else whole(output.detach()),
        embed=embed,
        norm=get_weight(decoder.norm),
        config=files.config,
    )


def load_model(files: TargetFiles, dtype: torch.dtype, ranks: Ranks = ALONE) -> Any:
    """The causal LM in `files`. Attention is what transformers prefers for it: sdpa, or eager where that has gaps.

    Raises Failure(UNSUPPORTED); weights that are missing would be random, and are refused.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            files.path,
            dtype=dtype,
            trust_remote_code=files.trust_remote_code,
            output_loading_info=True,
            **spread(ranks),
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        access.unless_broken(error)
        what = str(error).strip().splitlines()[0]
        raise unsupported(files.model, f"transformers cannot load it ({what})") from error
    model, report = loaded
    if ranks.size > 1 and not any(isinstance(weight, DTensor) for weight in model.parameters()):
        raise unsupported(files.model, "transformers knows no plan to spread it over several GPUs (tensorParallel)")
    wrong = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if wrong:
        raise unsupported(files.model, f"its files lack {len(wrong)} tensors, such as {wrong[0]}")
    return model


def spread(ranks: Ranks) -> dict[str, Any]:
    """What transformers is told to put a part of the model on each process."""
    if ranks.size == 1:
        return {}
    from transformers.distributed import configuration_utils  # noqa: PLC0415  it is new, and few need it

    return {"distributed_config": configuration_utils.DistributedConfig(tp_size=ranks.size, tp_plan="auto")}


def relative_difference(values: Tensor, reference: Tensor) -> float:
    """Largest difference as a share of the largest value; what is not finite is left to those who know documents."""
    is_finite = torch.isfinite(reference)
    if not is_finite.any():
        return 0.0
    size = reference[is_finite].abs().max().clamp(min=1e-12)
    return float((values - reference)[is_finite].abs().max() / size)


def get_weight(norm: nn.Module) -> Tensor:
    """The weight of a norm; ones for a norm without."""
    weight = getattr(norm, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else torch.ones(1)


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places grouped by similar length, longest first, each group within `budget` padded tokens or alone."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
