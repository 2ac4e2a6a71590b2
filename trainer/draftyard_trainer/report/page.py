"""The page: one HTML file with everything in it, which a browser may open without a network.

A policy in its head forbids every request, and all that comes from data is escaped by the templates.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

import draftyard_api
from draftyard_api import serving
from draftyard_api.names import export_path
from draftyard_trainer import display
from draftyard_trainer.draft.manifest import ServeLines
from draftyard_trainer.report import figures
from draftyard_trainer.report.costs import costs
from draftyard_trainer.report.figures import Figure
from draftyard_trainer.report.record import Record
from draftyard_trainer.report.rounds import replay
from draftyard_trainer.report.settings import settings
from draftyard_trainer.report.verdict import Reach, Verdict, judge


def environment() -> Environment:
    """Templates that escape whatever they are given, and refuse a name that they are not given."""
    made = Environment(
        loader=PackageLoader("draftyard_trainer.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"size": display.size, "duration": display.duration, "percent": percent, "count": count}
    return made


def percent(share: float, digits: int = 0) -> str:
    """`41%`."""
    return f"{share:.{digits}%}"


def count(number: float) -> str:
    """`1,234,567`."""
    return f"{number:,.0f}"


@cache
def plotly_gzip() -> str:
    """plotly.js, packed: the page unpacks it, and is a third of the size."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def render(name: str, plots: Sequence[Figure], values: Mapping[str, Any]) -> str:
    """A page from a template; without plots it carries no library."""
    return environment().get_template(name).render(
        version=draftyard_api.__version__,
        plotly=plotly_gzip() if plots else None,
        figures=[asdict(plot) for plot in plots],
        **values,
    )  # fmt: skip


def report(record: Record) -> str:
    """The report of one run."""
    verdict = judge(record)
    training = figures.training_figures(record)
    data = figures.data_figures(record.documents) if record.documents else []
    codec = figures.fidelity_figure(record)
    drafted = verdict.reach.draft_tokens if verdict.reach else 0
    values = {
        "record": record,
        "verdict": verdict,
        "scale": scale(record, verdict),
        "serve": serve_lines(record, verdict.reach),
        "training": training,
        "data": data,
        "codec": codec,
        "costs": costs(record),
        "settings": settings(record),
        "replies": [replay(sample, drafted) for sample in record.evaluation.samples] if record.evaluation else [],
        "drafted": drafted,
    }
    return render("report.html", [*training, *data, *([codec] if codec else [])], values)


def scale(record: Record, verdict: Verdict) -> dict[str, float | None]:
    """Places on a scale from 1, where a draft helps nothing, to K + 1, where all is accepted; in per cent."""
    reach = verdict.reach
    if reach is None:
        return {}
    most = reach.draft_tokens

    def place(length: float | None) -> float | None:
        return None if length is None else round(100 * min(max((length - 1) / most, 0), 1), 2)

    low, high = reach.interval or (None, None)
    return {"length": place(reach.length), "low": place(low), "high": place(high), "gate": place(record.gate)}


def serve_lines(record: Record, reach: Reach | None) -> ServeLines | None:
    """How to serve the draft: as it was published, or as it lies there."""
    if record.published is not None:
        return record.published.serve
    if record.manifest is None:
        return None
    target = serving.location(record.manifest.target.model)
    draft = serving.location(f"{record.where}/{export_path(record.run)}")
    drafted = reach.draft_tokens if reach else 3
    return ServeLines(vllm=serving.vllm(target, draft, drafted), sglang=serving.sglang(target, draft, drafted))
