"""Calibration is robust, and the fidelity report says what rounding does to labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_trainer.data.document import Document
from draftyard_trainer.hidden_states import calibration, fidelity
from draftyard_trainer.hidden_states.codec import Channels, Layout, StateCodec
from draftyard_trainer.hidden_states.fidelity import EVERY, Fidelity
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.target.head import TargetHead

A, H, V = 2, 32, 200
HEAD = TargetHead(torch.randn(V, H, generator=torch.Generator().manual_seed(9)), torch.zeros(V, H), torch.ones(H), {})


def sample(doc_id: int, length: int = 120, first: float = 1.0) -> Sample:
    """Normal states, channel h of size h + 1, the first token larger by a factor."""
    generator = torch.Generator().manual_seed(doc_id)
    sizes = torch.arange(1.0, H + 1)
    aux = torch.randn(length, A, H, generator=generator) * sizes
    last = torch.randn(length, H, generator=generator)
    aux[0] *= first
    last[0] *= first
    document = Document(doc_id, np.arange(length), np.array([[0, length]]))
    labels = HEAD.tok_lse(last)
    return Sample(document, aux.flatten(1), last, labels.tok, labels.lse)


def test_channels_have_their_usual_size() -> None:
    channels = calibration.measure([sample(doc_id, 500) for doc_id in range(9)], A)
    assert torch.allclose(channels.aux, torch.arange(1.0, H + 1).expand(A, H), rtol=0.1)
    assert torch.allclose(channels.last, torch.ones(H), rtol=0.1)


def test_neither_a_huge_first_token_nor_a_strange_document_counts() -> None:
    plain = calibration.measure([sample(doc_id) for doc_id in range(9)], A)
    strange = sample(20)
    odd = Sample(strange.document, strange.aux * 1e4, strange.last * 1e4, strange.tok, strange.lse)
    spoiled = calibration.measure([*(sample(doc_id, first=1e4) for doc_id in range(9)), odd], A)
    assert torch.allclose(plain.aux, spoiled.aux, rtol=0.3)


def test_a_channel_that_is_always_zero_has_a_size() -> None:
    dead = sample(1)
    dead.aux.unflatten(-1, (A, H))[:, 0, 5] = 0
    dead.aux.unflatten(-1, (A, H))[:, 1] = 0
    channels = calibration.measure([dead], A)
    assert channels.aux[0, 5] == channels.aux[0][torch.arange(H) != 5].min()
    assert channels.aux[1].tolist() == [1.0] * H


def test_sizes_come_back_and_noise_does_not() -> None:
    channels = calibration.measure([sample(1)], A)
    back = calibration.parse(calibration.serialise(channels))
    assert torch.equal(back.aux, channels.aux)
    assert torch.equal(back.last, channels.last)
    flat = calibration.serialise(Channels(channels.last, channels.last.clone()))
    for noise in (b"", b"noise", calibration.serialise(channels)[:-1], flat):
        with pytest.raises(ValueError, match="sizes of channels"):
            calibration.parse(noise)


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no training document has more than 4 tokens"):
        calibration.measure([], A)
    broken = sample(1)
    broken.aux[50, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        calibration.measure([broken], A)


# -- Fidelity -----------------------------------------------------------------------------------------


def measured(codec: str, samples: list[Sample]) -> Fidelity:
    channels = calibration.measure(samples, A)
    forms = StateCodec.of(Layout(A, H, torch.float32, codec), channels)  # type: ignore[arg-type]
    return fidelity.total(fidelity.measure(each, forms, channels, HEAD) for each in samples)


def test_the_report_equals_a_naive_one() -> None:
    samples = [sample(doc_id) for doc_id in range(4)]
    channels = calibration.measure(samples, A)
    forms = StateCodec.of(Layout(A, H, torch.float32, "compact"), channels)
    report = measured("compact", samples)
    divergences, agreeing, error, size = [], 0, 0.0, 0.0
    for each in samples:
        stored = forms.unpack(forms.pack(each))
        for row in range(each.document.doc_id, len(each.last), EVERY):
            p, q = ((HEAD.lm_head.double() @ state.double()).softmax(0) for state in (each.last[row], stored.last[row]))
            divergences.append(float((p * (p / q).log()).sum()))
            agreeing += int(p.argmax() == q.argmax())
        for row in range(4 + each.document.doc_id, len(each.aux), EVERY):
            true, kept = (state[row].view(A, H)[1] / channels.aux[1] for state in (each.aux, stored.aux))
            error += float((true - kept).square().sum())
            size += float(true.square().sum())
    assert report.rows == len(divergences) > 20
    assert report.agreeing == agreeing
    assert report.mean == pytest.approx(np.mean(divergences), rel=1e-2)
    assert report.largest == pytest.approx(max(divergences), rel=1e-2)
    p99 = sorted(divergences)[math.ceil(0.99 * len(divergences)) - 1]
    assert report.p99 / 10**0.1 * 0.98 <= p99 <= report.p99 * 1.02
    assert report.relative_errors[1] == pytest.approx(math.sqrt(error / size), rel=1e-4)


def test_parts_add_up() -> None:
    samples = [sample(doc_id) for doc_id in range(6)]
    channels = calibration.measure(samples, A)
    forms = StateCodec.of(Layout(A, H, torch.float32, "balanced"), channels)
    each = [fidelity.measure(one, forms, channels, HEAD) for one in samples]
    halves = fidelity.total(each[:2]) + fidelity.total([None, *each[2:]])
    whole = fidelity.total(each)
    assert halves.rows == whole.rows == sum(one.rows for one in each)
    assert halves.histogram == whole.histogram
    assert sum(whole.histogram) == whole.rows
    assert halves.relative_errors == pytest.approx(whole.relative_errors)
    assert Fidelity.model_validate_json(whole.model_dump_json(by_alias=True)) == whole


def test_more_bits_are_more_faithful() -> None:
    samples = [sample(doc_id) for doc_id in range(8)]
    balanced, compact = measured("balanced", samples), measured("compact", samples)
    assert max(balanced.relative_errors) < 0.015
    assert 3 < compact.relative_errors[0] / balanced.relative_errors[0] < 5
    # the final state has eight bits in both
    assert balanced.mean == compact.mean


def test_a_codec_that_a_target_bears_passes() -> None:
    fidelity.require(measured("balanced", [sample(doc_id) for doc_id in range(8)]), "balanced")
    fidelity.require(Fidelity(), "lossless")


def test_a_codec_that_a_target_does_not_bear_is_refused() -> None:
    """A channel that the head does not read becomes a thousand times larger: all others are rounded to zeros."""
    head = TargetHead(HEAD.lm_head * (torch.arange(H) > 0), HEAD.embed, HEAD.norm, {})
    usual, changed = [sample(doc_id) for doc_id in range(8)], []
    for each in (sample(doc_id) for doc_id in range(20, 28)):
        each.last[:, 0] *= 1000
        changed.append(each)
    channels = calibration.measure(usual, A)
    forms = StateCodec.of(Layout(A, H, torch.float32, "balanced"), channels)
    report = fidelity.total(fidelity.measure(each, forms, channels, head) for each in changed)
    words = r"hiddenStates\.codec: given balanced.*labels move by.*tokens stay.*accepted: lossless"
    with pytest.raises(Failure, match=words) as caught:
        fidelity.require(report, "balanced")
    assert caught.value.code is ExitCode.UNSUPPORTED


def test_a_miss_that_chance_explains_is_none() -> None:
    """97 of 100 rows agree where 97.5 % must: three in a hundred more or fewer mean nothing yet."""
    bounds = fidelity.BOUNDS["balanced"]
    few = Fidelity(rows=100, agreeing=97, errors=(0.0,), sizes=(1.0,))
    many = Fidelity(rows=100000, agreeing=97000, errors=(0.0,), sizes=(1.0,))
    assert few.problems(bounds) == []
    assert many.problems(bounds) == ["97.0% of the most likely tokens stay (at least 97.5%)"]
