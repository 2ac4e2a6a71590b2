"""Every series that the operator and the trainer have for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram
from tables import table

from draftyard_operator.metrics import Metrics
from draftyard_trainer.progress_server import GAUGES


def operator() -> str:
    """Those of the operator, in the order in which it makes them."""
    made = [one for one in vars(Metrics()).values() if isinstance(one, Counter | Gauge | Histogram)]
    rows = [[f"`{name_of(one)}`", one._type, labels_of(one), one._documentation] for one in made]  # noqa: SLF001
    return table(["series", "type", "labels", "what it says"], rows)


def name_of(metric: Counter | Gauge | Histogram) -> str:
    """As it is written in a query."""
    name = metric._name  # noqa: SLF001  the library has no other way to ask
    return f"{name}_total" if isinstance(metric, Counter) else name


def labels_of(metric: Counter | Gauge | Histogram) -> str:
    """Names of its labels."""
    return ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001


def trainer() -> str:
    """Those of a stage's pod."""
    rows = [[f"`draftyard_stage_{name}`", "gauge", "`stage`", about] for name, about in GAUGES.items()]
    return table(["series", "type", "labels", "what it says"], rows)
