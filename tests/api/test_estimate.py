"""The bill before the run: arithmetic against figures that were worked out by hand for well-known targets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from draftyard_api import estimate
from draftyard_api.names import Stage
from draftyard_api.progress import StageResult, StoredStates
from draftyard_api.spec import (
    ChatEngine,
    Data,
    DataSource,
    Draft,
    DraftTrainingSpec,
    FileSource,
    HiddenStates,
    OwnAnswers,
    Preset,
    Pvc,
    Regenerate,
    Target,
    Train,
    Workspace,
)
from draftyard_api.targets import WELL_KNOWN, TargetShape

TERA = 1e12
TOKENS = 300_000_000


def spec(mode: str = "Offline", codec: str = "none", ttt_steps: int = 4, epochs: int = 1, **more) -> DraftTrainingSpec:
    return DraftTrainingSpec(
        mode=mode,
        target=Target(model="org/name"),
        draft=Draft(),
        data=Data(source=DataSource(file=FileSource(uri="pvc://c/x")), eval_fraction=0.0),
        workspace=Workspace(pvc=Pvc(existing_claim="c")),
        hidden_states=HiddenStates(codec=codec) if mode == "Offline" else None,
        train=Train(ttt_steps=ttt_steps, epochs=epochs),
        **more,
    )


def amount(loss_share: float = 0.6) -> estimate.Amount:
    loss = int(TOKENS * loss_share)
    return estimate.Amount(400_000, TOKENS, loss, loss, TOKENS, 4578, "Counted", "by hand")


def shape(name: str) -> TargetShape:
    return TargetShape.from_config(WELL_KNOWN[name])


@dataclass(frozen=True)
class Bill:
    """What 300 million tokens take, worked out by hand: 60 % of them supervised, hours of an H100."""

    target: str
    terabytes: tuple[float, float, float, float]
    """With each codec: none, lossless, balanced, compact."""
    generate_hours: float
    """At 40 % of the peak, also for a mixture of experts."""
    train_hours: tuple[float, float]
    """One epoch at 30 % of the peak with all rows computed: 4 steps, 7 steps."""
    draft_width: int | None = None
    """Width of the draft's MLP, where it is not the one that the target implies."""


BILLS = (
    Bill("meta-llama/Llama-3.1-8B-Instruct", (8.9, 6.3, 4.1, 3.1), 3.2, (2.6, 4.5)),
    Bill("meta-llama/Llama-3.3-70B-Instruct", (17.7, 12.6, 8.1, 6.2), 29, (8.4, 14.5)),
    Bill("openai/gpt-oss-120b", (6.2, 4.4, 2.9, 2.2), 2.15, (1.9, 3.4)),
    Bill("Qwen/Qwen3-235B-A22B", (8.9, 6.3, 4.1, 3.1), 9.0, (3.7, 6.5)),
    Bill("moonshotai/Kimi-K2-Instruct", (15.5, 11.0, 7.1, 5.4), 13, (6.9, 11.9), draft_width=25600),
)


@pytest.mark.parametrize("bill", BILLS, ids=lambda bill: bill.target)
def test_hidden_states_of_300_million_tokens(bill):
    found = [
        estimate.hidden_state_bytes(spec(codec=codec), shape(bill.target), amount()) / TERA
        for codec in ("none", "lossless", "balanced", "compact")
    ]
    assert found == pytest.approx(bill.terabytes, rel=0.03)


def test_online_stores_no_states():
    assert estimate.hidden_state_bytes(spec("Online"), shape("Qwen/Qwen3-8B"), amount()) == 0


def test_float32_states_are_twice_as_large():
    small = spec()
    large = small.model_copy(update={"target": Target(model="org/name", dtype="float32")})
    sizes = [estimate.hidden_state_bytes(each, shape("Qwen/Qwen3-8B"), amount()) for each in (small, large)]
    assert sizes[1] / sizes[0] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("bill", BILLS, ids=lambda bill: bill.target)
def test_generate_hours(bill):
    target = shape(bill.target)
    found = estimate.gpu_hours(spec(), target, amount())["generate"]
    assert found * estimate.mfu(target) / 0.40 == pytest.approx(bill.generate_hours, rel=0.1)


@pytest.mark.parametrize("bill", BILLS, ids=lambda bill: bill.target)
def test_train_hours_with_every_row_supervised(bill):
    draft = Draft(intermediate_size=bill.draft_width)
    wanted = [spec(ttt_steps=steps).model_copy(update={"draft": draft}) for steps in (4, 7)]
    found = [estimate.gpu_hours(each, shape(bill.target), amount(loss_share=1.0))["train"] for each in wanted]
    assert found == pytest.approx(bill.train_hours, rel=0.1)


def test_prompt_rows_cost_less():
    hours = [estimate.gpu_hours(spec(), shape("Qwen/Qwen3-8B"), amount(share))["train"] for share in (1.0, 0.6)]
    assert 1.4 < hours[0] / hours[1] < 1.8


def test_online_pays_for_the_target_in_every_epoch():
    once, twice = (estimate.gpu_hours(spec("Online", epochs=n), shape("Qwen/Qwen3-8B"), amount()) for n in (1, 2))
    assert twice["train"] == pytest.approx(2 * once["train"])
    assert once["generate"] == 0.0


def test_the_draft_of_llama_8b_has_424_million_parameters():
    found = estimate.draft_parameters(spec(), shape("meta-llama/Llama-3.1-8B-Instruct"))
    assert found == pytest.approx(424.7e6, rel=0.002)


def test_a_plan_names_its_assumptions_and_adds_up():
    plan = estimate.estimate(spec(), shape("meta-llama/Llama-3.1-8B-Instruct"), amount(), free=10**13)
    parts = plan.bytes
    assert parts.needed == parts.prepare + parts.hidden_states + parts.checkpoints + parts.export
    assert plan.bytes.free == 10**13
    assert plan.basis == "Counted"
    assert plan.shards == 19  # 3.15 hours
    assert "H100" in plan.assumes


@pytest.mark.parametrize(
    ("file_bytes", "max_samples", "documents", "words"),
    [
        pytest.param(None, None, 70000, "70000 conversations", id="nothing known"),
        pytest.param(340_400_000, None, 100000, "in 340400000 bytes", id="from the size of the file"),
        pytest.param(340_400_000, 500, 500, "500 conversations", id="fewer are asked for"),
        pytest.param(3404, 500, 1, "1 conversations in", id="more are asked for than there are"),
    ],
)
def test_assumed_amounts(file_bytes, max_samples, documents, words):
    wanted = spec()
    wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"max_samples": max_samples})})
    found = estimate.assumed(wanted, file_bytes)
    assert found.documents == documents
    assert words in found.source
    assert found.basis == "Assumed"


@pytest.mark.parametrize(
    ("preset", "max_samples", "documents"),
    [
        pytest.param("gsm8k", None, 7473, id="a whole preset"),
        pytest.param("perfectblend", 100000, 100000, id="a part of a large one"),
        pytest.param("gsm8k", 100000, 7473, id="no more than there are"),
        pytest.param("another", None, 70000, id="one of which nothing is known"),
    ],
)
def test_presets_have_as_many_conversations_as_is_known(preset, max_samples, documents):
    wanted = spec()
    data = Data(source=DataSource(preset=Preset(name=preset)), max_samples=max_samples)
    assert estimate.assumed(wanted.model_copy(update={"data": data}), None).documents == documents


def test_of_a_bucket_as_many_are_taken_as_are_asked_for():
    data = spec().data.model_copy(update={"max_samples": 200000})
    assert estimate.assumed(spec().model_copy(update={"data": data}), None).documents == 200000


@pytest.mark.parametrize(
    ("free", "words"),
    [
        pytest.param(20 * TERA, None, id="it fits"),
        pytest.param(7 * TERA, "hiddenStates.codec: lossless", id="a lossless codec fits"),
        pytest.param(5 * TERA, "hiddenStates.codec: balanced", id="a smaller codec fits"),
        pytest.param(1 * TERA, "data.maxSamples: ", id="no codec fits"),
        pytest.param(TERA / 1000, "take a workspace with 8.5Ti free", id="not even the draft fits"),
    ],
)
def test_a_plan_that_does_not_fit_says_what_would(free, words):
    found = estimate.proposal(spec(), shape("meta-llama/Llama-3.1-8B-Instruct"), amount(), int(free))
    if words is None:
        assert found is None
    else:
        assert words in (found or "")
    if words == "data.maxSamples: ":
        assert "codec" not in (found or "")


def test_a_claim_can_grow():
    told = estimate.proposal(
        spec(codec="compact"),
        shape("meta-llama/Llama-3.1-8B-Instruct"),
        amount(),
        int(2.2 * TERA),
        claim="r1-workspace",
    )
    assert told == (
        "the plan needs 2.90 TiB, claim r1-workspace has 2.00 TiB free; grow claimTemplate.size to 3.1Ti, or "
        "data.maxSamples: 260000"
    )


def test_what_is_frozen_once_answers_were_made_is_proposed_for_another_run():
    target = shape("meta-llama/Llama-3.1-8B-Instruct")
    told = estimate.proposal(answering(), target, amount(), int(5 * TERA), claim="r1-workspace") or ""
    assert "or under another name hiddenStates.codec: " in told
    assert "or under another name data.maxSamples: " in told
    assert "under another name grow" not in told


def test_what_is_proposed_fits():
    target = shape("meta-llama/Llama-3.1-8B-Instruct")
    told = estimate.proposal(spec(codec="compact"), target, amount(), int(2.2 * TERA))
    samples = int((told or "").rpartition(" ")[2])
    share = samples / amount().documents
    smaller = dataclasses.replace(
        amount(), documents=samples, tokens=int(TOKENS * share), label_rows=int(TOKENS * 0.6 * share)
    )
    assert estimate.proposal(spec(codec="compact"), target, smaller, int(2.2 * TERA)) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2820334097006, "2.57 TiB"), (2**60, "1024.00 PiB")],
)
def test_bytes_are_told_in_words(count, text):
    assert estimate.bytes_text(count) == text


@pytest.mark.parametrize(("hours", "text"), [(123.44, "123.4"), (0.62, "0.6"), (0.0042, "0.004"), (0.0, "0.000")])
def test_hours_are_told_without_exponents(hours, text):
    assert estimate.hours_text(hours) == text


def test_shards_are_about_ten_minutes():
    assert estimate.default_shards(spec(), documents=1000, generate_seconds=6100) == 11
    assert estimate.default_shards(spec(), documents=3, generate_seconds=6100) == 3


@pytest.mark.parametrize(
    ("target", "billions"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 7.5),
        ("meta-llama/Llama-3.3-70B-Instruct", 69.5),
        ("Qwen/Qwen3-30B-A3B", 3.0),
        ("Qwen/Qwen3-235B-A22B", 21.5),
        ("openai/gpt-oss-120b", 5.1),
        ("openai/gpt-oss-20b", 3.6),
        ("deepseek-ai/DeepSeek-V3", 36.6),
        ("moonshotai/Kimi-K2-Instruct", 32),
        ("google/gemma-3-27b-it", 27),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.1),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
    ],
)
def test_active_parameters_of_well_known_targets(target, billions):
    assert shape(target).active_parameters / 1e9 == pytest.approx(billions, rel=0.06)


def test_a_nested_text_config_is_looked_into():
    inner = dict(WELL_KNOWN["Qwen/Qwen3-8B"])
    assert TargetShape.from_config({"text_config": inner}) == TargetShape.from_config(inner)


def test_a_config_without_sizes_is_refused():
    with pytest.raises(ValueError, match="hidden_size, vocab_size missing"):
        TargetShape.from_config({"num_hidden_layers": 2})


def test_a_draft_of_latent_attention_has_plain_heads():
    heads = shape("deepseek-ai/DeepSeek-V3").draft_heads
    assert (heads.query, heads.key, heads.size) == (56, 14, 128)


def test_a_draft_of_experts_is_six_widths_wide():
    assert shape("Qwen/Qwen3-30B-A3B").draft_mlp_width == 12288
    assert shape("openai/gpt-oss-120b").draft_mlp_width == 17408  # 17280, in steps of 256
    assert shape("Qwen/Qwen3-8B").draft_mlp_width == 12288


def test_a_width_per_layer():
    config = dict(WELL_KNOWN["Qwen/Qwen3-8B"]) | {"num_hidden_layers": 3, "intermediate_size": [64, 128, 64]}
    found = TargetShape.from_config(config)
    assert (found.mlp_parameters, found.draft_mlp_width) == (3 * 4096 * 256, 128)


def test_every_well_known_target_has_a_shape():
    shapes = [shape(name) for name in WELL_KNOWN]
    assert all(found.active_parameters > 10**8 for found in shapes)
    assert all(found.draft_heads.query % found.draft_heads.key == 0 for found in shapes)


# -- What finished shards say -----------------------------------------------------------------------


def shard_result(bytes_: int, share: float = 0.25, seconds: float = 3600.0) -> StageResult:
    """A quarter of the documents, stored."""
    whole = amount()
    states = StoredStates(
        key="k", shard=0, shards=4, documents=int(share * whole.documents), tokens=int(share * whole.tokens),
        label_rows=int(share * whole.label_rows), bytes=bytes_,
    )  # fmt: skip
    return StageResult(stage=Stage.GENERATE, seconds=seconds, hidden_states=states)


def test_finished_shards_replace_what_was_assumed():
    """Half of the assumed bytes, and an hour for a quarter of the tokens on two GPUs."""
    wanted, model = spec(codec="balanced"), shape("meta-llama/Llama-3.1-8B-Instruct")
    wanted = wanted.model_copy(update={"target": Target(model="org/name", tensor_parallel=2)})
    made = estimate.estimate(wanted, model, amount())
    quarter = made.bytes.hidden_states / 4
    plan = estimate.measured(made, wanted, model, amount(), [shard_result(int(quarter / 2))])
    assert plan.basis == "Measured"
    assert plan.bytes.hidden_states == pytest.approx(made.bytes.hidden_states / 2, rel=1e-6)
    assert plan.bytes.needed == made.bytes.needed - made.bytes.hidden_states + plan.bytes.hidden_states
    assert float(plan.gpu_hours.generate) == pytest.approx(8.0)
    assert float(plan.gpu_hours.total) == pytest.approx(8.0 + float(made.gpu_hours.train), abs=0.1)
    assert "measured on 1 of" in plan.assumes


def test_a_shard_that_was_found_finished_says_how_fast_it_was_made():
    """The attempt that found it took no time."""
    wanted, model = spec(codec="balanced"), shape("meta-llama/Llama-3.1-8B-Instruct")
    made = estimate.estimate(wanted, model, amount())
    found = shard_result(10**9, seconds=0.1)
    rate = found.hidden_states.tokens / 3600
    found = found.model_copy(
        update={"hidden_states": found.hidden_states.model_copy(update={"tokens_per_second": rate})}
    )
    assert float(estimate.measured(made, wanted, model, amount(), [found]).gpu_hours.generate) == pytest.approx(4.0)


def test_finished_steps_replace_the_assumed_speed():
    """Two epochs at a thousand tokens per second, on eight GPUs; said once, however often."""
    wanted, model = spec(codec="balanced"), shape("meta-llama/Llama-3.1-8B-Instruct")
    train = wanted.train.model_copy(update={"epochs": 2, "gpus_per_node": 4, "nodes": 2})
    wanted = wanted.model_copy(update={"train": train})
    made = estimate.estimate(wanted, model, amount())
    plan = estimate.measured_training(made, wanted, 9_000_000, 1000.0)
    assert plan.basis == "Measured"
    assert float(plan.gpu_hours.train) == pytest.approx(2 * 9_000_000 / 1000 / 3600 * 8)
    others = float(plan.gpu_hours.total) - float(plan.gpu_hours.train)
    assert others == pytest.approx(float(made.gpu_hours.generate), abs=0.06)
    again = estimate.measured_training(plan, wanted, 9_000_000, 1000.0)
    assert again == plan
    assert plan.assumes == f"{made.assumes}; train as measured"


def test_without_finished_shards_a_plan_stays_as_it_is():
    wanted, model = spec(codec="balanced"), shape("meta-llama/Llama-3.1-8B-Instruct")
    made = estimate.estimate(wanted, model, amount())
    assert estimate.measured(made, wanted, model, amount(), []) == made
    assert estimate.measured(made, wanted, model, amount(), [StageResult(stage=Stage.GENERATE)]) == made


def test_bytes_by_codec():
    made = estimate.estimate(spec(codec="balanced"), shape("meta-llama/Llama-3.1-8B-Instruct"), amount())
    sizes = made.bytes.hidden_states_by_codec
    assert sizes is not None
    assert sizes["balanced"] == made.bytes.hidden_states
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert estimate.estimate(spec("Online"), shape("Qwen/Qwen3-8B"), amount()).bytes.hidden_states_by_codec is None


# -- The target's own answers -----------------------------------------------------------------------


def answering(**own) -> DraftTrainingSpec:
    plain = spec()
    return plain.model_copy(update={"data": plain.data.model_copy(update={"regenerate": OwnAnswers(**own)})})


def test_own_answers_cost_what_is_read_and_ten_times_what_is_said():
    model = shape("Qwen/Qwen3-8B")
    hours = estimate.gpu_hours(answering(), model, amount())
    assert hours["regenerate"] == pytest.approx(hours["generate"] * (1 + 10 * 0.6))
    assert estimate.gpu_hours(spec(), model, amount())["regenerate"] == 0.0


def test_no_answer_is_longer_than_its_limit():
    model = shape("Qwen/Qwen3-8B")
    short, long = (estimate.gpu_hours(answering(max_new_tokens=limit), model, amount()) for limit in (16, 4096))
    assert short["regenerate"] < long["regenerate"]


def test_what_an_engine_says_costs_no_gpu_of_ours():
    made = estimate.estimate(answering(engine=ChatEngine(url="http://a/v1")), shape("Qwen/Qwen3-8B"), amount())
    assert made.gpu_hours.regenerate is None
    assert made.bytes.conversations == pytest.approx(4.6 * TOKENS)
    assert "that are said" not in made.assumes


def test_own_answers_are_in_every_sum():
    model = shape("Qwen/Qwen3-8B")
    own, plain = (estimate.estimate(wanted, model, amount()) for wanted in (answering(), spec()))
    assert own.bytes.needed - plain.bytes.needed == own.bytes.conversations
    assert float(own.gpu_hours.total) - float(plain.gpu_hours.total) == pytest.approx(
        float(own.gpu_hours.regenerate), abs=0.11
    )
    assert "a tenth of that for tokens that are said" in own.assumes
    halved = estimate.with_hours(own.gpu_hours, train=1.0)
    assert float(halved.total) == pytest.approx(float(own.gpu_hours.regenerate) + float(own.gpu_hours.generate) + 1.0)


@pytest.mark.parametrize(
    ("own", "parallelism", "seconds", "shards"),
    [({}, 1, 6100, 11), ({}, 16, 6100, 16), ({"shards": 5}, 16, 6100, 5), ({}, 1, 0, 1), ({}, 1, 10**9, 1000)],
)
def test_shards_of_answers_take_ten_minutes(own, parallelism, seconds, shards):
    wanted = answering(**own).model_copy(update={"regenerate": Regenerate(parallelism=parallelism)})
    assert estimate.conversation_shards(wanted, documents=10**6, seconds=seconds) == shards
