"""The training step on a GPU in bf16, against the bare matrix products of the same step on the same GPU.

    python bench/gpu.py --out build/bench/gpu.json

Needs a CUDA device. The limit counts the operations of attention at the rate of the dense products: harsher than what
any attention kernel reaches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

import draftyard
import inputs
import limit
from cases import Case, Shape
from report import Bar

LLAMA_8B = Shape(4096, 32, 8, 14336, 128256, 32000, head_dim=128)
QWEN3_32B = Shape(5120, 64, 8, 25600, 151936, 32000, head_dim=128)
CASES = (
    Case("llama-8b-t2048-b4", LLAMA_8B, 2048, batch=4, loss_share=0.75),
    Case("llama-8b-t8192", LLAMA_8B, 8192, loss_share=0.75),
    Case("llama-8b-t8192-dense", LLAMA_8B, 8192),
    Case("llama-8b-t16384", LLAMA_8B, 16384, loss_share=0.75),
    Case("qwen3-32b-t8192", QWEN3_32B, 8192, loss_share=0.75),
)
STEPS = 5
GIB = 2**30


def seconds(work: Callable[[int], object]) -> float:
    """Median of some runs behind two of warm-up."""
    found = []
    for number in range(STEPS + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work(number)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])


def measure(case: Case) -> dict[str, float]:
    """One case: its step, its memory, its limit."""
    tensors = inputs.make(case.shape, inputs.made_up(case), "cuda")
    tensors = {name: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    bench = draftyard.build(case, tensors)
    loaded = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = seconds(bench.step)
    peak = torch.cuda.max_memory_allocated() - loaded
    del bench
    bare = limit.build(case, tensors)
    dense = seconds(lambda _: bare.dense())
    flops = bare.dense_flops + bare.attention_flops
    products = dense * flops / bare.dense_flops
    return {
        "tokens": case.batch * case.length,
        "seconds": step,
        "limit_seconds": products,
        "tokens_per_second": case.batch * case.length / step,
        "limit_share": products / step,
        "tflops": flops / step / 1e12,
        "limit_tflops": flops / products / 1e12,
        "peak_gib": peak / GIB,
    }


def main() -> None:
    """Measure all cases and say so, one line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": {}}
    for case in track(CASES, description="GPU steps"):
        report["cases"][case.name] = measure(case)
        torch.cuda.empty_cache()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1))
        print(case.name, {name: round(value, 3) for name, value in report["cases"][case.name].items()}, flush=True)
    for name, result in report["cases"].items():
        print(Bar(f"gpu-limit-share/{name}", result["limit_share"], ">=", 0.75))


if __name__ == "__main__":
    main()
