"""AdamW against its formula, the schedule against a list, clipping, and gradients that are not finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Train
from draftyard_trainer.optim import BETAS, EPS, MAX_SKIPPED_IN_A_ROW, Optimizer, learning_rate

NAMES = ("matrix", "vector")
SHAPES = ((4, 3), (5,))
TOTAL_STEPS = 40
UNCLIPPED = 1e6


def build_parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def build_optimizer(parameters: Sequence[nn.Parameter], **changes: float) -> Optimizer:
    return Optimizer(parameters, Train(**{"learning_rate": 0.01, "grad_clip": UNCLIPPED, **changes}), TOTAL_STEPS)


def give(optimizer: Optimizer, parameters: Sequence[nn.Parameter], given: Sequence[Tensor]) -> None:
    """What a backward pass leaves, and what the loop does next."""
    for parameter, gradient in zip(parameters, given, strict=True):
        wanted = gradient.to(parameter.dtype)
        parameter.grad = wanted.clone() if parameter.grad is None else parameter.grad + wanted
    optimizer.collect()


def take_steps(optimizer: Optimizer, parameters: Sequence[nn.Parameter], first: int, count: int) -> None:
    for step in range(first, first + count):
        give(optimizer, parameters, gradients(step))
        optimizer.step(step)


# -- Schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup_ratio", "total_steps", "rates"),
    [
        pytest.param(
            0.2, 10,
            (0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060),
            id="two steps up, then half a cosine",
        ),
        pytest.param(0.0, 4, (1.0, 0.853553, 0.5, 0.146447), id="no warm-up"),
        pytest.param(0.015, 4, (1.0, 0.853553, 0.5, 0.146447), id="a warm-up below one step is none"),
        pytest.param(1.0, 4, (0.25, 0.5, 0.75, 1.0), id="warm-up alone"),
        pytest.param(0.5, 1, (1.0,), id="a single step"),
    ],
)  # fmt: skip
def test_the_schedule_is_this_list(warmup_ratio, total_steps, rates):
    config = Train(learning_rate=1.0, warmup_ratio=warmup_ratio)
    found = [learning_rate(step, total_steps, config) for step in range(total_steps)]
    assert found == pytest.approx(list(rates), abs=5e-7)


def test_the_rate_never_exceeds_its_peak():
    """A chain of scheduler objects overshoots to 1.010e-4 at the end of the warm-up."""
    config = Train(learning_rate=1e-4)
    rates = [learning_rate(step, 2000, config) for step in range(2000)]
    assert max(rates) == 1e-4
    assert rates.index(1e-4) == int(0.015 * 2000) - 1
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[31:]))
    assert 0 < rates[-1] < 1e-9


def test_a_resumed_optimizer_has_the_rates_of_an_undisturbed_one():
    wanted = [learning_rate(step, TOTAL_STEPS, Train(learning_rate=0.01)) for step in range(TOTAL_STEPS)]
    parameters = build_parameters()
    resumed = build_optimizer(parameters)
    found = []
    for step in range(25, TOTAL_STEPS):
        give(resumed, parameters, gradients(step))
        found.append(resumed.step(step).learning_rate)
    assert found == wanted[25:]


# -- Update -----------------------------------------------------------------------------------


def adamw_by_hand(weight_decay: float, count: int) -> list[Tensor]:
    """Loshchilov and Hutter's formula in fp64, decay apart from the moments, both moments corrected for their start."""
    config = Train(learning_rate=0.01)
    found = [parameter.detach().double() for parameter in build_parameters()]
    first = [torch.zeros_like(each) for each in found]
    second = [torch.zeros_like(each) for each in found]
    for step in range(count):
        rate = learning_rate(step, TOTAL_STEPS, config)
        for place, gradient in enumerate(given.double() for given in gradients(step)):
            first[place] = BETAS[0] * first[place] + (1 - BETAS[0]) * gradient
            second[place] = BETAS[1] * second[place] + (1 - BETAS[1]) * gradient**2
            mean, square = first[place] / (1 - BETAS[0] ** (step + 1)), second[place] / (1 - BETAS[1] ** (step + 1))
            found[place] = found[place] * (1 - rate * weight_decay) - rate * mean / (square.sqrt() + EPS)
    return found


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_follow_the_formula(weight_decay):
    parameters = build_parameters()
    take_steps(build_optimizer(parameters, weight_decay=weight_decay), parameters, first=0, count=12)
    for found, wanted in zip(parameters, adamw_by_hand(weight_decay, count=12), strict=True):
        torch.testing.assert_close(found.detach().double(), wanted, rtol=2e-6, atol=2e-7)


def test_gradients_of_micro_batches_add_up():
    whole, parts = build_parameters(), build_parameters()
    at_once, in_parts = build_optimizer(whole), build_optimizer(parts)
    for step in range(3):
        give(at_once, whole, [sum(pair) for pair in zip(gradients(step), gradients(50 + step), strict=True)])
        give(in_parts, parts, gradients(step))
        give(in_parts, parts, gradients(50 + step))
        at_once.step(step)
        in_parts.step(step)
    assert all(torch.equal(left, right) for left, right in zip(whole, parts, strict=True))


@pytest.mark.parametrize("scale", [0.01, 0.1, 10.0, 1e6], ids=lambda scale: f"gradients times {scale}")
def test_clipping_scales_all_gradients_by_one_factor(scale):
    parameters = build_parameters()
    optimizer = build_optimizer(parameters, grad_clip=0.5)
    given = gradients(0, scale)
    give(optimizer, parameters, given)
    update = optimizer.step(0)
    norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in given))
    factor = min(1.0, 0.5 / (norm + 1e-6))
    assert update.grad_norm == pytest.approx(norm, rel=1e-6)
    assert update.clipped == (factor < 1)
    assert optimizer.clipped == int(factor < 1)
    # After one update the first moment is 0.1 times what the update saw.
    moments = optimizer.moments(NAMES)
    for name, gradient in zip(NAMES, given, strict=True):
        seen = moments[f"exp_avg.{name}"] / (1 - BETAS[0])
        torch.testing.assert_close(seen, factor * gradient, rtol=1e-5, atol=0)


def test_a_parameter_without_a_gradient_counts_as_zero():
    parameters = build_parameters()
    optimizer = build_optimizer(parameters)
    before = parameters[1].detach().clone()
    parameters[0].grad = gradients(0)[0]
    assert [gradient.shape for gradient in optimizer.gradients()] == [parameter.shape for parameter in parameters]
    update = optimizer.step(0)
    assert update.grad_norm == pytest.approx(float(gradients(0)[0].norm()), rel=1e-6)
    assert torch.equal(parameters[1], before)


# -- Masters ----------------------------------------------------------------------------------


def test_a_model_in_fp32_is_its_own_master():
    parameters = build_parameters()
    assert all(a is b for a, b in zip(build_optimizer(parameters).masters, parameters, strict=True))


def test_a_model_in_bf16_follows_masters_in_fp32():
    narrow, wide = build_parameters(torch.bfloat16), build_parameters(torch.bfloat16)
    wide = [nn.Parameter(parameter.detach().float()) for parameter in wide]
    followed, alone = build_optimizer(narrow), build_optimizer(wide)
    for step in range(6):
        rounded = [gradient.bfloat16().float() for gradient in gradients(step)]
        give(followed, narrow, rounded)
        assert all(parameter.grad is None for parameter in narrow)
        give(alone, wide, rounded)
        followed.step(step)
        alone.step(step)
    assert all(master.dtype == torch.float32 for master in followed.masters)
    for parameter, master, wanted in zip(narrow, followed.masters, wide, strict=True):
        assert torch.equal(master, wanted)
        assert torch.equal(parameter, wanted.bfloat16())


def test_masters_keep_updates_that_bf16_would_lose():
    """Near 1 bf16 steps by 2^-8: a hundred updates of 1e-4 are 0.01 in a master, and nothing without one."""
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = Optimizer([parameter], Train(learning_rate=1e-4, warmup_ratio=0, grad_clip=UNCLIPPED), 10**6)
    for step in range(100):
        give(optimizer, [parameter], [torch.ones(3)])
        optimizer.step(step)
    assert optimizer.masters[0].tolist() == pytest.approx([0.99] * 3, abs=1e-4)
    assert parameter.tolist() == [torch.tensor(0.99).bfloat16().item()] * 3


def test_micro_batches_in_bf16_add_up_in_fp32():
    """256 + 1 is 256 in bf16."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = build_optimizer([parameter])
    for gradient in (256.0, 1.0, 1.0):
        give(optimizer, [parameter], [torch.tensor([gradient])])
    assert optimizer.gradients()[0].item() == 258.0


# -- Gradients that are not finite ------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(value):
    parameters = build_parameters()
    optimizer = build_optimizer(parameters)
    take_steps(optimizer, parameters, first=0, count=2)
    before = [parameter.detach().clone() for parameter in parameters]
    moments = {name: moment.clone() for name, moment in optimizer.moments(NAMES).items()}
    spoilt = gradients(2)
    spoilt[1][0] = value
    give(optimizer, parameters, spoilt)
    update = optimizer.step(2)
    assert (update.skipped, update.clipped, math.isfinite(update.grad_norm)) == (True, False, False)
    assert (optimizer.skipped, optimizer.skipped_in_a_row) == (1, 1)
    assert all(torch.equal(left, right) for left, right in zip(parameters, before, strict=True))
    assert all(torch.equal(moment, moments[name]) for name, moment in optimizer.moments(NAMES).items())
    # Nothing of the bad gradient is left for the next step.
    take_steps(optimizer, parameters, first=3, count=1)
    assert (optimizer.skipped, optimizer.skipped_in_a_row) == (1, 0)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in parameters)


def skip(optimizer: Optimizer, parameters: Sequence[nn.Parameter], times: int) -> None:
    for step in range(times):
        give(optimizer, parameters, [torch.full(shape, float("nan")) for shape in SHAPES])
        assert optimizer.step(step).skipped


def test_the_tenth_in_a_row_ends_the_training():
    parameters = build_parameters()
    optimizer = build_optimizer(parameters)
    skip(optimizer, parameters, times=MAX_SKIPPED_IN_A_ROW - 1)
    with pytest.raises(Failure, match="not finite in 10 steps in a row") as caught:
        skip(optimizer, parameters, times=1)
    assert (caught.value.code, caught.value.reason) == (ExitCode.DIVERGED, Reason.DIVERGED)
    assert caught.value.code == 71
    assert "train.learningRate" in caught.value.message


def test_a_good_step_starts_the_count_anew():
    parameters = build_parameters()
    optimizer = build_optimizer(parameters)
    for _ in range(3):
        skip(optimizer, parameters, times=MAX_SKIPPED_IN_A_ROW - 1)
        take_steps(optimizer, parameters, first=0, count=1)
    assert (optimizer.skipped, optimizer.skipped_in_a_row) == (3 * (MAX_SKIPPED_IN_A_ROW - 1), 0)


# -- Its state --------------------------------------------------------------------------------


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("done", [0, 1, 7], ids=lambda done: f"after {done} steps")
def test_a_restored_optimizer_goes_on_bit_equal(dtype, done):
    parameters = build_parameters(dtype)
    optimizer = build_optimizer(parameters, weight_decay=0.1, grad_clip=0.5)
    take_steps(optimizer, parameters, first=0, count=done)
    masters = copied(dict(zip(NAMES, optimizer.masters, strict=True)))
    moments = copied(optimizer.moments(NAMES))
    take_steps(optimizer, parameters, first=done, count=8)

    others = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    restored = build_optimizer(others, weight_decay=0.1, grad_clip=0.5)
    restored.restore(NAMES, masters, moments)
    assert all(torch.equal(other, masters[name].to(dtype)) for name, other in zip(NAMES, others, strict=True))
    take_steps(restored, others, first=done, count=8)
    assert all(torch.equal(left, right) for left, right in zip(others, parameters, strict=True))
    assert all(torch.equal(left, right) for left, right in zip(restored.masters, optimizer.masters, strict=True))
    after = restored.moments(NAMES)
    assert all(torch.equal(moment, after[name]) for name, moment in optimizer.moments(NAMES).items())


def test_the_state_has_two_moments_and_a_count_per_parameter():
    parameters = build_parameters(torch.bfloat16)
    optimizer = build_optimizer(parameters)
    assert {name: float(moment.abs().sum()) for name, moment in optimizer.moments(NAMES).items()} == {
        f"{kind}.{name}": 0.0 for name in NAMES for kind in ("exp_avg", "exp_avg_sq", "step")
    }
    take_steps(optimizer, parameters, first=0, count=3)
    moments = optimizer.moments(NAMES)
    assert all(moment.dtype == torch.float32 for moment in moments.values())
    assert [moments[f"step.{name}"].tolist() for name in NAMES] == [[3.0], [3.0]]


@pytest.mark.parametrize("missing", ["exp_avg.vector", "exp_avg_sq.matrix", "step.vector"])
def test_a_missing_tensor_is_an_error_and_never_a_fresh_start(missing):
    parameters = build_parameters()
    optimizer = build_optimizer(parameters)
    moments = optimizer.moments(NAMES)
    del moments[missing]
    with pytest.raises(KeyError, match=missing):
        optimizer.restore(NAMES, dict(zip(NAMES, parameters, strict=True)), moments)
