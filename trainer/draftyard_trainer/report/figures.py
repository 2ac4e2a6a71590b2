"""The plots, as plotly.js takes them: plain values, colours by the name of a CSS variable.

Colours are filled in by the page itself, so one file is right in light and in dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from draftyard_trainer.hidden_states.rounding import BINS_PER_DECADE, SMALLEST
from draftyard_trainer.report.curve import Curve, Values, drawable, smooth, thin
from draftyard_trainer.report.documents import Documents
from draftyard_trainer.report.record import Record

SERIES = 8
"""Colours that the style sheet has: `--series-1` and so on, again from the first after the last."""
MARKS = 200
"""Single steps that are marked on a curve at most."""
LENGTH_BINS = 40
COVERAGE_POINTS = 60

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One plot."""

    name: str
    """Id on the page."""
    title: str
    """Heading."""
    caption: str
    """What to see in it, for those who do not see it too."""
    traces: Sequence[Trace]
    x: str
    """Title of the x axis."""
    y: str
    """Title of the y axis."""
    axes: dict[str, Any]
    """Further settings, such as a logarithmic axis."""
    lines: Sequence[float] = ()
    """Steps at which a dotted line stands: where training went on after a stop."""


def line(name: str, steps: Values, values: Values, number: int, **more: Any) -> Trace:
    """A line, thinned."""
    x, y = thin(steps, values)
    style = {"color": f"--series-{(number - 1) % SERIES + 1}", "width": 2, **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": style, **more}


def faint(name: str, steps: Values, values: Values, number: int) -> Trace:
    """What a smoothed line is made from."""
    return line(name, steps, values, number, line={"width": 1}, opacity=0.35, hoverinfo="skip", showlegend=False)


def both(name: str, steps: Values, values: Values, number: int = 1) -> list[Trace]:
    """The values faintly, and their means over a window; the values alone where there are few."""
    means = smooth(values)
    if means is values:
        return [line(name, steps, values, number)]
    return [faint(name, steps, values, number), line(name, steps, means, number)]


def marks(name: str, steps: Sequence[float], values: Sequence[float | None], colour: str, symbol: str) -> Trace:
    """Single points."""
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": list(steps), "y": list(values),
        "marker": {"color": colour, "symbol": symbol, "size": 9},
    }  # fmt: skip


def training_figures(record: Record) -> list[Figure]:
    """Curves of a training; none before its first step."""
    curve = record.curve
    if not len(curve):
        return []
    resumed = sorted({float(end.result.resumed_from_step) for end in record.history if end.result.resumed_from_step})
    made = [
        loss(curve),
        acceptance(record),
        by_position("positions", "Acceptance by position", curve, "prefixAccuracy",
                    "Share of positions at which the first k proposals are all right."),
        by_position("divergence", "Divergence by position", curve, "divergence",
                    "Mean KL divergence of proposal k from the target, nats: what the loss is made of."),
        learning_rate(curve),
        speed(curve),
        gradient(curve),
    ]  # fmt: skip
    return [replaced(figure, resumed) for figure in made]


def replaced(figure: Figure, resumed: Sequence[float]) -> Figure:
    """The figure with the steps at which training went on."""
    return Figure(figure.name, figure.title, figure.caption, figure.traces, figure.x, figure.y, figure.axes, resumed)


def loss(curve: Curve) -> Figure:
    """Loss; skipped steps and spikes stand out."""
    values = curve.column("loss")
    traces = both("loss", curve.steps, values)
    spikes = curve.where("spike")[:MARKS]
    if len(spikes):
        at = np.searchsorted(curve.steps, spikes)
        traces.append(marks("spike", spikes.tolist(), [drawable(values[place]) for place in at], "--bad", "x"))
    skipped = curve.where("skipped")[:MARKS]
    caption = f"{len(curve)} steps"
    if len(skipped):
        finite = values[np.isfinite(values)]
        floor = drawable(float(finite.min())) if len(finite) else 0.0
        traces.append(marks("skipped", skipped.tolist(), [floor] * len(skipped), "--warn", "triangle-up"))
        caption += f", {len(curve.where('skipped'))} of them skipped, since the gradient was not finite"
    return Figure("loss", "Loss", f"{caption}.", traces, "step", "loss", {})


def acceptance(record: Record) -> Figure:
    """Simulated acceptance length in training, and on held-out documents at checkpoints."""
    curve = record.curve
    traces = both("training rows", curve.steps, curve.column("tauSim"), 1)
    caption = "Teacher-forced, at the K that is served."
    checkpoint = record.checkpoint
    if checkpoint is not None and checkpoint.scores:
        steps = [float(score.step) for score in checkpoint.scores]
        lengths = [drawable(score.tau_sim) for score in checkpoint.scores]
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "name": "held out", "x": steps, "y": lengths,
             "line": {"color": "--series-2", "width": 2}, "marker": {"color": "--series-2", "size": 7}}
        )  # fmt: skip
        best = checkpoint.best
        if best is not None:
            traces.append(marks("best", [float(best.step)], [drawable(best.tau_sim)], "--good", "star"))
            caption += f" The best checkpoint on held-out documents is step {best.step}."
    else:
        caption += " No held-out document was scored."
    return Figure("acceptance", "Acceptance length, simulated", caption, traces, "step", "tokens a pass", {})


def by_position(name: str, title: str, curve: Curve, column: str, caption: str) -> Figure:
    """A smoothed line for each step of the unroll."""
    table = curve.lists.get(column, np.zeros((len(curve), 0)))
    traces = [
        line(f"position {place + 1}", curve.steps, smooth(table[:, place]), place + 1)
        for place in range(table.shape[1])
    ]
    unit = "nats" if column == "divergence" else "share"
    return Figure(name, title, caption, traces, "step", unit, {})


def learning_rate(curve: Curve) -> Figure:
    """The schedule."""
    traces = [line("learning rate", curve.steps, curve.column("learningRate"), 1)]
    return Figure("rate", "Learning rate", "Warm-up, then decay.", traces, "step", "learning rate", {"yformat": ".1e"})


def speed(curve: Curve) -> Figure:
    """Tokens a second, and the share of the time that a step waits for data."""
    seconds = curve.column("seconds")
    taken = np.where(seconds > 0, seconds, np.nan)
    rate, waited = curve.column("tokens") / taken, curve.column("dataSeconds") / taken
    caption = "Tokens of a step over its time."
    if np.isfinite(waited).any():
        caption += f" Steps wait for data {np.nanmedian(waited):.1%} of their time (median)."
    return Figure("speed", "Tokens a second", caption, both("tokens a second", curve.steps, rate), "step", "tokens/s",
                  {"yzero": True})  # fmt: skip


def gradient(curve: Curve) -> Figure:
    """Norm of the gradient before it is clipped."""
    norms, clipped = curve.column("gradNorm"), curve.where("clipped")
    caption = f"Before clipping; {len(clipped) / len(curve):.0%} of the steps were clipped."
    return Figure("gradient", "Gradient norm", caption, both("norm", curve.steps, norms), "step", "norm", {})


# -- Data ---------------------------------------------------------------------------------------------


def data_figures(documents: Documents) -> list[Figure]:
    """Lengths, and what the draft vocabulary covers."""
    return [figure for figure in (lengths(documents), coverage(documents)) if figure is not None]


def lengths(documents: Documents) -> Figure | None:
    """Documents by their number of tokens."""
    together = np.concatenate([documents.train_lengths, documents.held_out_lengths])
    if not len(together):
        return None
    edges = np.histogram_bin_edges(together, bins=min(LENGTH_BINS, max(1, len(np.unique(together)))))
    centres = ((edges[1:] + edges[:-1]) / 2).round(1).tolist()
    traces: list[Trace] = []
    split = (("training", documents.train_lengths), ("held out", documents.held_out_lengths))
    for number, (name, values) in enumerate(split, start=1):
        counts, _ = np.histogram(values, bins=edges)
        traces.append({"type": "bar", "name": name, "x": centres, "y": counts.tolist(),
                       "marker": {"color": f"--series-{number}"}})  # fmt: skip
    caption = f"Median {np.median(together):.0f} tokens, longest {together.max()}."
    return Figure("lengths", "Length of documents", caption, traces, "tokens", "documents", {"barmode": "stack"})


def coverage(documents: Documents) -> Figure | None:
    """Share of the supervised tokens that a smaller draft vocabulary would cover."""
    counts, manifest = documents.vocabulary_counts, documents.manifest
    if not counts.sum() or not manifest.vocab_coverage:
        return None
    shares = counts.cumsum() / counts.sum() * manifest.vocab_coverage
    sizes = np.unique(np.geomspace(1, len(counts), COVERAGE_POINTS).round().astype(np.int64))
    values = [drawable(shares[size - 1]) for size in sizes]
    trace = {"type": "scatter", "mode": "lines", "name": "coverage", "x": sizes.tolist(), "y": values,
             "line": {"color": "--series-1", "width": 2}}  # fmt: skip
    caption = f"{len(counts)} tokens cover {manifest.vocab_coverage:.2%} of what training documents supervise."
    axes = {"xlog": True, "yformat": ".0%"}
    return Figure("coverage", "Coverage of the draft vocabulary", caption, [trace], "members", "coverage", axes)


def fidelity_figure(record: Record) -> Figure | None:
    """How far labels move when states are rounded; None for codecs that lose nothing."""
    report = record.states.fidelity if record.states else None
    if report is None or not report.rows:
        return None
    counts = np.array(report.histogram)
    used = np.flatnonzero(counts)
    places = np.arange(used[0], used[-1] + 1)
    centres = [drawable(10 ** (SMALLEST + (place + 0.5) / BINS_PER_DECADE), 3) for place in places]
    trace = {"type": "scatter", "mode": "lines", "name": "label rows", "x": centres, "y": counts[places].tolist(),
             "line": {"color": "--series-1", "width": 2, "shape": "hvh"}, "fill": "tozeroy"}  # fmt: skip
    caption = f"KL divergence of the labels of stored states from those of the true ones, {report.rows} rows."
    return Figure("fidelity", "Codec fidelity", caption, [trace], "nats", "rows",
                  {"xlog": True})  # fmt: skip
