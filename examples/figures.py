"""Write what each example takes into its head: GPUs, tokens, bytes with each codec, GPU-hours, as the estimator says.

python examples/figures.py            # rewrite examples/*.yaml that have a place for figures
python examples/figures.py --check    # only say which are out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from draftyard_api import document, estimate, preview
from draftyard_api.estimate import Amount, bytes_text
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import Plan
from draftyard_api.targets import WELL_KNOWN, weights

EXAMPLES = Path(__file__).parent
BEGIN, END = "# -- what it takes, by `make figures` --\n", "# -- until here --\n"
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def main() -> int:
    """Rewrite, or compare. Returns 1 where a file had other figures and was only to be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where figures are out of date")
    is_check = parser.parse_args().check
    stale = [path for path in sized() if path.read_text() != with_figures(path)]
    for path in stale:
        if is_check:
            print(f"{path.name}: figures are out of date; make figures writes them", file=sys.stderr)
        else:
            path.write_text(with_figures(path))
    return int(is_check and bool(stale))


def sized() -> list[Path]:
    """Examples with a place for figures."""
    return [path for path in sorted(EXAMPLES.glob("*.yaml")) if BEGIN in path.read_text()]


def with_figures(path: Path) -> str:
    """The file as it should be. Raises ValueError for a target of which nothing is known."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    training = document.load(path)
    found = re.search(r"--like ([\w./-]+)", before)
    model = found[1] if found else training.spec.target.model
    if model not in WELL_KNOWN:
        raise ValueError(f"{path.name}: given target.model {model}; accepted: one of {', '.join(WELL_KNOWN)}")
    return before + BEGIN + "".join(f"# {line}\n" for line in figures(training.spec, model)) + END + after


def figures(spec: DraftTrainingSpec, model: str) -> list[str]:
    """The lines between the marks."""
    shape = preview.find_shape(preview.like(spec, model), EXAMPLES)
    assert shape is not None
    amount = estimate.assumed(spec, None)
    made = estimate.estimate(spec, shape, amount)
    return [
        f"GPUs       {gpus(spec)}",
        f"weights    {memory(spec, model)}",
        f"data       {data(amount, made)}",
        *codecs(spec, made),
        f"disk       {bytes_text(made.bytes.needed)} in all, {bytes_text(made.bytes.export)} of it the draft",
        f"GPU-hours  {hours(made)}",
        f"           assumes {made.assumes.partition(';')[0]};{made.assumes.partition(';')[2].rpartition(';')[0]}",
    ]


def gpus(spec: DraftTrainingSpec) -> str:
    """How many are held at the same time, by stage."""
    parts = []
    if spec.hidden_states is not None:
        each = (spec.generate.gpus_per_pod if spec.generate else None) or spec.target.tensor_parallel
        pods = spec.hidden_states.parallelism
        parts.append(f"generate {pods * each} ({pods} pods of {each})")
    parts.append(f"train {spec.train.nodes * spec.train.gpus_per_node} ({spec.train.nodes} pods of "
                 f"{spec.train.gpus_per_node})")  # fmt: skip
    if spec.evaluate is not None:
        parts.append(f"evaluate {spec.evaluate.gpus_per_pod or spec.target.tensor_parallel}")
    return ", ".join(parts).replace("1 pods", "1 pod")


def memory(spec: DraftTrainingSpec, model: str) -> str:
    """Weights of the target, and those that each of its GPUs holds."""
    held, parallel = weights(WELL_KNOWN[model]), spec.target.tensor_parallel
    size = BYTES[spec.target.dtype]
    place = f"each of {parallel} GPUs" if parallel > 1 else "one GPU"
    whole, part = bytes_text(size * held.total), bytes_text(size * held.on_each(parallel))
    return f"{whole} in {spec.target.dtype}, {part} on {place}"


def data(amount: Amount, made: Plan) -> str:
    """Documents, tokens, steps."""
    return f"{amount.documents:,} conversations, {amount.tokens / 1e6:,.0f} million tokens, {made.steps:,} steps"


def codecs(spec: DraftTrainingSpec, made: Plan) -> list[str]:
    """What hidden states take with each codec; nothing Online."""
    if spec.hidden_states is None:
        return []
    chosen = spec.hidden_states.codec
    sizes = [
        f"{codec} {bytes_text(size)}{' (chosen)' if codec == chosen else ''}"
        for codec, size in (made.bytes.hidden_states_by_codec or {}).items()
    ]
    return [f"states     {', '.join(sizes)}"]


def hours(made: Plan) -> str:
    """By stage, and together."""
    stages = ("generate", "train", "evaluate")
    told = [f"{stage} {value}" for stage in stages if (value := getattr(made.gpu_hours, stage)) is not None]
    return f"{', '.join(told)}; together {made.gpu_hours.total}"


if __name__ == "__main__":
    sys.exit(main())
