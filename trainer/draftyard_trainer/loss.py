"""The loss of an unroll: linear layer and cross-entropy in one, the teacher computed once for all steps.

Chunks of label rows go through the target's head once; every student row that is asked about one of them is handled
while its teacher is there. Gradients are formed in the forward pass, so no `[rows, D]` tensor outlives its chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from draftyard_api.schema import Objective
from draftyard_trainer.draft.layers import compiled
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.metrics import MetricSums
from draftyard_trainer.rows import PackedRow
from draftyard_trainer.target.head import TargetHead, product
from draftyard_trainer.ttt import Guess, supervised_hidden

# T steps, M student rows of all steps, C label rows of a chunk, S student rows of a chunk, H width,
# D draft vocabulary, r label rows

DECAY = 0.8
"""Weight of step k is DECAY ** k."""
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Most bytes of the logits of one chunk, all steps together; the teacher's are a share 1/T of them."""
CHUNK_ROWS = {"cpu": 1024, "cuda": 8192}
"""Student rows of a chunk, about: a product is at full speed by then, and more rows only take memory."""
MIN_ALPHA = 1e-8
HYBRID_ETA = 3.0


@dataclass(frozen=True, eq=False)
class Teacher:
    """The target's head over the draft vocabulary."""

    weight_DH: Tensor
    ids: Tensor
    head: TargetHead

    @classmethod
    def of(cls, head: TargetHead, ids: Tensor) -> Teacher:
        """Take the rows of the draft vocabulary, `ids` `[D]`, once."""
        return cls(head.lm_head[ids.to(head.lm_head.device)], ids, head)

    def logits(self, last_CH: Tensor) -> Tensor:
        """Scaled and capped logits `[C, D]`, fp32 or wider."""
        weight = self.weight_DH
        return self.head.cap(wide_product(last_CH.to(weight.device, weight.dtype), weight))

    def logit_of(self, last_RH: Tensor, place_R: Tensor) -> Tensor:
        """Scaled and capped logit `[R]` of one draft id per row, fp32 or wider."""
        weight_RH = self.weight_DH[place_R]
        wide = torch.promote_types(weight_RH.dtype, torch.float32)
        return self.head.cap((last_RH.to(weight_RH.device, wide) * weight_RH).sum(-1))

    def find(self, token_R: Tensor) -> tuple[Tensor, Tensor]:
        """Draft id of each target id, any where it has none, and whether it has one."""
        token_R = token_R.to(self.ids.device, torch.int64)
        place_R = torch.searchsorted(self.ids, token_R).clamp(max=len(self.ids) - 1)
        return place_R, self.ids[place_R] == token_R


@dataclass(frozen=True, eq=False)
class LossConfig:
    """What the loss is. `step_scales[k]` multiplies the sum over the supervised pairs of step k."""

    step_scales: Tensor
    objective: Objective = "kl"
    keeps_out_of_vocab: bool = False


@dataclass(frozen=True, eq=False)
class StepLoss:
    """Loss of one row, ready for backward, and the sums behind its metrics."""

    total: Tensor
    sums: MetricSums


def step_scales(gated: Tensor, decay: float = DECAY) -> Tensor:
    """`[T]`: `decay^k / sum(decay) / N_k` with `gated[k]` = N_k, the supervised pairs of the whole optimizer step.

    N_k comes from masks alone, so the gradient depends on neither packing nor micro-batches nor world size.
    """
    weights = decay ** torch.arange(len(gated), dtype=torch.float64)
    return weights / weights.sum() / gated.to("cpu", torch.float64).clamp(min=1)


def ttt_loss(
    draft: DraftModel, guesses: Sequence[Guess], row: PackedRow, teacher: Teacher, config: LossConfig
) -> StepLoss:
    """Loss and metrics of an unrolled row. Without gradients enabled only the numbers are made."""
    asked = [supervised_hidden(guess, gate_N) for guess, gate_N in zip(guesses, row.gates_TN, strict=True)]
    labels = [row.label_TN[step][guess.rows] for step, guess in enumerate(asked)]
    normed_MH = torch.cat([draft.norm(guess.hidden) for guess in asked])
    total, grades = _FusedLoss.apply(normed_MH, draft.lm_head.weight, row, labels, teacher, config)
    return StepLoss(total, summed(grades, asked, row))


@dataclass(frozen=True, eq=False)
class Grades:
    """Per student row of all steps, `[M]`, in the order of the steps."""

    loss: Tensor
    ce: Tensor
    entropy: Tensor
    accept: Tensor
    hit: Tensor
    in_vocab: Tensor

    @classmethod
    def empty(cls, count: int, device: torch.device) -> Grades:
        """To be filled chunk by chunk."""
        numbers = {
            name: torch.zeros(count, dtype=torch.float64, device=device) for name in ("loss", "ce", "entropy", "accept")
        }
        flags = {name: torch.zeros(count, dtype=torch.bool, device=device) for name in ("hit", "in_vocab")}
        return cls(**numbers, **flags)


class _FusedLoss(torch.autograd.Function):
    """Sum of the weighted objective over all student rows; its gradients are made on the way."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes values one by one
        ctx: torch.autograd.function.FunctionCtx,
        normed_MH: Tensor,
        weight_DH: Tensor,
        row: PackedRow,
        labels: Sequence[Tensor],
        teacher: Teacher,
        config: LossConfig,
    ) -> tuple[Tensor, Grades]:
        wide = torch.promote_types(weight_DH.dtype, torch.float32)
        grad_MH = torch.zeros_like(normed_MH) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        grad_DH = torch.zeros_like(weight_DH, dtype=wide) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        grades = Grades.empty(len(normed_MH), normed_MH.device)
        scales = config.step_scales.to(normed_MH.device)
        for chunk in chunks(labels, len(row.last), len(weight_DH)):
            lesson = teach(teacher, row, chunk.low, chunk.high)
            y_SH = torch.cat([normed_MH[part.places] for part in chunk.parts])
            logits_SD = wide_product(y_SH, weight_DH)
            for part in chunk.parts:
                given = logits_SD[part.rows], lesson.of(part.labels), scales[part.step]
                grade(*given, config).store(grades, part.places)
            dlogits_SD = logits_SD.to(weight_DH.dtype)
            if grad_MH is not None:
                grad_SH = dlogits_SD @ weight_DH
                for part in chunk.parts:
                    grad_MH[part.places] = grad_SH[part.rows]
            if grad_DH is not None and wide == weight_DH.dtype:
                grad_DH.addmm_(dlogits_SD.T, y_SH)
            elif grad_DH is not None:
                grad_DH.add_(dlogits_SD.T @ y_SH)
        ctx.grads = [grad_MH, None if grad_DH is None else grad_DH.to(weight_DH.dtype)]  # type: ignore[attr-defined]
        return grades.loss.sum().to(wide), grades

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Handed over, not copied: they are the largest tensors of a step. So a second backward has nothing to give.
        grads: list[Tensor | None] = ctx.grads  # type: ignore[attr-defined]
        scaled = [None if grad is None else grad.mul_(grad_outputs[0].to(grad.dtype)) for grad in grads]
        grads.clear()
        return *scaled, None, None, None, None


@dataclass(frozen=True, eq=False)
class Lesson:
    """The teacher of some rows: probabilities over the draft vocabulary, and what it chose."""

    p: Tensor
    entropy: Tensor
    p_absolute: Tensor
    """Probability mass of the draft vocabulary in the target's own distribution, `[C]`: p times it is absolute."""
    choice: Tensor
    """The target's first choice as a draft id; any value where it is out of the vocabulary."""
    in_vocab: Tensor

    def of(self, index: Tensor | slice) -> Lesson:
        """The lesson of some rows; a slice costs nothing."""
        return Lesson(
            self.p[index], self.entropy[index], self.p_absolute[index], self.choice[index],
            self.in_vocab[index],
        )  # fmt: skip


def teach(teacher: Teacher, row: PackedRow, low: int, high: int) -> Lesson:
    """The teacher of label rows `low .. high`."""
    log_p = teacher.logits(row.last[low:high])
    p = log_p.softmax(-1)
    # The largest of p is exp(top - log_mass). One softmax costs half of a logsumexp alone.
    log_mass = log_p.amax(-1) - p.amax(-1).log()
    log_p.sub_(log_mass[:, None])
    entropy = -log_p.mul_(p).sum(-1)
    choice, in_vocab = teacher.find(row.tok[low:high])
    lse = row.lse[low:high].to(log_mass.device, log_mass.dtype)
    return Lesson(
        p=p,
        entropy=entropy,
        # A tie within rounding may put the mass a hair above the whole.
        p_absolute=(log_mass - lse).exp().clamp(max=1.0),
        choice=choice,
        in_vocab=in_vocab,
    )


@dataclass(frozen=True, eq=False)
class Graded:
    """Student rows of one step and chunk: the gradient by their logits, and their numbers."""

    dlogits: Tensor
    loss: Tensor
    ce: Tensor
    lesson: Lesson
    accept: Tensor
    hit: Tensor

    def store(self, grades: Grades, place: slice) -> None:
        """Put the numbers where they belong."""
        grades.loss[place] = self.loss
        grades.ce[place] = self.ce
        grades.entropy[place] = self.lesson.entropy
        grades.accept[place] = self.accept
        grades.hit[place] = self.hit
        grades.in_vocab[place] = self.lesson.in_vocab


@compiled
def grade(logits_SD: Tensor, lesson: Lesson, scale: Tensor, config: LossConfig) -> Graded:
    """Compare student logits with their teacher. `scale`, of no dimension, is the step's weight over its
    normaliser.

    The logits are overwritten by the gradient. A pair hits when no logit is above that of the target's choice.
    """
    top_S1 = logits_SD.amax(dim=-1, keepdim=True)
    hit = (logits_SD.gather(1, lesson.choice[:, None]) == top_S1)[:, 0] & lesson.in_vocab
    q = logits_SD.softmax(-1)
    # The largest of q is 1 / mass; p sums to 1: the cross-entropy is log(mass) - p . (logits - top).
    ce = -q.amax(-1).log() - logits_SD.sub_(top_S1).mul_(lesson.p).sum(-1)
    torch.mul(lesson.p, lesson.p_absolute[:, None], out=logits_SD)
    accept = torch.minimum(logits_SD, q, out=logits_SD).sum(-1)
    counted = torch.ones_like(ce) if config.keeps_out_of_vocab else lesson.in_vocab.to(ce.dtype)
    value, dlogits_SD = objective(q, ce, lesson, config.objective)
    weight_S = counted * scale
    torch.mul(dlogits_SD, weight_S[:, None], out=logits_SD)
    return Graded(logits_SD, value * weight_S, ce, lesson, accept, hit)


def objective(q: Tensor, ce: Tensor, lesson: Lesson, name: Objective) -> tuple[Tensor, Tensor]:
    """Value `[S]` and gradient by the logits `[S, D]` of one of the objectives.

    kl: cross-entropy. lk_alpha: -log of the acceptance alpha = sum min(p, q). lk_hybrid: both, by a weight that falls
    with alpha and carries no gradient. q may be used up.
    """
    if name == "kl":
        return ce, q.sub_(lesson.p)
    alpha = torch.minimum(lesson.p, q).sum(-1)
    below = (q < lesson.p).to(q.dtype)
    dalpha = q * (below - (q * below).sum(-1, keepdim=True))
    if name == "lk_alpha":
        floored = alpha.clamp(min=MIN_ALPHA)
        return -floored.log(), -dalpha / floored[:, None] * (alpha > MIN_ALPHA).to(q.dtype)[:, None]
    weight = (-HYBRID_ETA * alpha).exp()
    value = weight * (ce - lesson.entropy) + (1 - weight) * (1 - alpha)
    return value, weight[:, None] * (q - lesson.p) - (1 - weight)[:, None] * dalpha


def wide_product(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T`; 16-bit factors leave as fp32, made as `tok` and `lse` are: no bf16 step between the two."""
    return product(rows, weight) if rows.element_size() == 2 else rows @ weight.T


@dataclass(frozen=True)
class Part:
    """Students of one step in a chunk."""

    step: int
    rows: slice
    """Among the students of the chunk."""
    places: slice
    """Among the students of all steps."""
    labels: slice | Tensor
    """Their label rows, from the chunk's first: a slice where none is left out."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Label rows `low .. high` and the students of all steps that are asked about one of them, `[S]`."""

    low: int
    high: int
    parts: tuple[Part, ...]


def chunks(labels: Sequence[Tensor], num_labels: int, vocabulary: int) -> Iterator[Chunk]:
    """All students, in chunks of label rows whose logits fit into CHUNK_BYTES. The labels of a step ascend."""
    edges = chunk_edges(labels, num_labels, vocabulary)
    bounds = torch.stack([torch.searchsorted(label, edges) for label in labels]).tolist()
    starts = [0, *itertools.accumulate(len(label) for label in labels)]
    for number, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        parts: list[Part] = []
        count = 0
        for step, (label, bound) in enumerate(zip(labels, bounds, strict=True)):
            begin, end = bound[number : number + 2]
            if end > begin:
                rows, places = slice(count, count + end - begin), slice(starts[step] + begin, starts[step] + end)
                parts.append(Part(step, rows, places, as_slice(label[begin:end] - low)))
                count = rows.stop
        if parts:
            yield Chunk(low, high, tuple(parts))


def as_slice(ascending: Tensor) -> slice | Tensor:
    """Distinct ascending numbers as a slice where none is left out. On a GPU asking would cost more than it saves."""
    if not ascending.is_cuda and int(ascending[-1] - ascending[0]) == len(ascending) - 1:
        return slice(int(ascending[0]), int(ascending[-1]) + 1)
    return ascending


def chunk_edges(labels: Sequence[Tensor], num_labels: int, vocabulary: int) -> Tensor:
    """Where chunks begin, and the end: as many label rows as have students, or a teacher, for a chunk's logits."""
    joined = torch.cat(tuple(labels))
    most = min(CHUNK_ROWS[joined.device.type], CHUNK_BYTES[joined.device.type] // (4 * vocabulary))
    # a label row that begins below the size brings at most a student of every step
    size = max(1, most - len(labels) + 1)
    running = torch.bincount(joined, minlength=num_labels).clamp(min=1).cumsum(0)
    wanted = torch.arange(size, num_labels * len(labels) + size, size, device=joined.device)
    inner = torch.searchsorted(running, wanted, right=True).clamp(max=num_labels)
    edges: Tensor = torch.cat([inner.new_zeros(1), inner]).unique()
    return edges


def summed(grades: Grades, asked: Sequence[Guess], row: PackedRow) -> MetricSums:
    """Add the graded rows up per step."""
    counts = [len(guess.rows) for guess in asked]
    known = row.next_token >= 0
    joint_N = torch.ones(row.num_rows, dtype=torch.bool, device=grades.hit.device)
    joint = []
    for guess, hit in zip(asked, grades.hit.split(counts), strict=True):
        right = joint_N[guess.rows] & hit
        joint_N = torch.zeros_like(joint_N).index_copy(0, guess.rows, right)
        joint.append(right.sum())

    def per_step(values: Tensor) -> Tensor:
        return torch.stack([part.sum(dtype=torch.float64) for part in values.split(counts)])

    counted = grades.in_vocab
    return MetricSums(
        gated=row.gates_TN.sum(1, dtype=torch.float64),
        asked=torch.tensor(counts, dtype=torch.float64, device=grades.hit.device),
        hits=per_step(grades.hit),
        joint=torch.stack(joint).double(),
        in_vocab=per_step(counted),
        ce=per_step(grades.ce * counted),
        entropy=per_step(grades.entropy * counted),
        accept=per_step(grades.accept),
        loss=per_step(grades.loss),
        labels=known.sum(dtype=torch.float64)[None],
        on_policy=(known & (row.tok == row.next_token)).sum(dtype=torch.float64)[None],
    )
