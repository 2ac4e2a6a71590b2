"""States packed and unpacked on a GPU are those of a CPU."""

from __future__ import annotations

import pytest
import torch

from draftyard_api.schema import Codec
from draftyard_trainer.hidden_states import record
from draftyard_trainer.hidden_states.codec import CODECS, Channels, Layout, StateCodec
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.testing import tiny_document

GPU, CPU = torch.device("cuda"), torch.device("cpu")
A, H = 3, 512


@pytest.mark.parametrize("name", CODECS)
def test_a_gpu_packs_and_unpacks_as_a_cpu(name: Codec) -> None:
    """Many documents, one right after the other: none may be compressed before its bytes have come."""
    generator = torch.Generator().manual_seed(0)
    channels = Channels(torch.rand(A, H, generator=generator) + 0.5, torch.rand(H, generator=generator) + 0.5)
    layout = Layout(A, H, torch.bfloat16, name)
    here, there = StateCodec.of(layout, channels), StateCodec.of(layout, channels.to(GPU))
    for number in range(20):
        document = tiny_document(number, 900)
        rows = len(document.label_rows())
        states = torch.randn(900, A * H, generator=generator).bfloat16(), torch.randn(rows, H, generator=generator)
        tok, lse = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows)
        sample = Sample(document, states[0], states[1].bfloat16(), tok, lse)
        far = Sample(document, sample.aux.to(GPU), sample.last.to(GPU), tok.to(GPU), lse.to(GPU))
        written = record.encode(there.pack(far).to(CPU), there)
        from_gpu = here.unpack(record.decode(written, here))
        from_cpu = here.unpack(here.pack(sample))
        on_gpu = there.unpack(record.decode(written, there, pinned=True).to(GPU))
        for kind in ("aux", "last"):
            one, other, third = (getattr(each, kind).cpu().float() for each in (from_gpu, from_cpu, on_gpu))
            # a division may be rounded otherwise there: by one code at most, in few places
            assert float((one - other).norm() / other.norm()) < 1e-3
            assert torch.allclose(one, third, rtol=2**-7, atol=1e-6)
