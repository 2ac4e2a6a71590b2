"""The base of every model in the contract, and the small types that several of them share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_TEXT = 1024
"""Longest free text, in characters. Every string has a limit, or the API server refuses the CEL rules as too costly."""

MAX_ITEMS = 64
"""Longest list or map that a person writes."""


class Model(BaseModel):
    """A frozen value that crosses a border: camelCase outside, snake_case inside, unknown fields refused.

    `strict` is why `learningRate: "1e-4"` is an error and not a number: the API server would refuse it too.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


# Words that the spec, tasks and tensor code share.
Mode = Literal["Online", "Offline"]
Dtype = Literal["bfloat16", "float16", "float32"]
Codec = Literal["none", "lossless", "balanced", "compact"]
Alignment = Literal["runtime", "specforge"]
Objective = Literal["kl", "lk_alpha", "lk_hybrid"]
Unroll = Literal["full", "onPath"]
Tracker = Literal["tensorboard", "wandb", "swanlab", "mlflow"]
PromptSet = Literal["heldOut", "mt-bench", "gsm8k", "humaneval", "file"]
Proposal = Literal["chain", "tree"]

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
Name = Annotated[str, Field(max_length=253, pattern=NAME_PATTERN)]
QUANTITY_PATTERN = r"^([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]+))?$"
"""A Kubernetes quantity as text: number, unit, exponent. RE2, Rust and Python agree on it."""
MAX_QUANTITY = 64
Quantity = Annotated[
    int | Annotated[str, Field(max_length=MAX_QUANTITY, pattern=QUANTITY_PATTERN)], Field(union_mode="left_to_right")
]
"""A Kubernetes quantity: `8`, `"500m"`, `"32Gi"`."""

TextMap = Annotated[dict[str, Annotated[str, Field(max_length=MAX_TEXT)]], Field(max_length=MAX_ITEMS)]


class SecretRef(Model):
    """A key of a Secret in the object's namespace. Values of Secrets never appear in a task, a log or a status."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Key inside the Secret; by default the name of the environment variable that it fills."""


class S3Access(Model):
    """How an `s3://` location is reached. Without a Secret the pod's ServiceAccount is the identity."""

    endpoint: Text | None = None
    """URL of an S3-compatible service; by default the one of the region."""
    region: Text | None = None
    """Region of the bucket."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, optionally, AWS_SESSION_TOKEN."""
