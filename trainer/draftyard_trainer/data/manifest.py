"""What is recorded of prepared documents: what decided them, what was counted, how answers were found."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from draftyard_api.progress import DatasetCounts
from draftyard_api.schema import Model

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# steps are not counted here: runs with other training settings share the folder
class MaskReport(Model):
    """How the assistant's answers were found in the rendered texts."""

    sources: dict[str, int]
    """Rendered texts by the source of their mask: tags, diff, headers."""
    turns: int
    """Assistant turns that were looked for."""
    turns_not_located: int
    """Assistant turns that are not supervised, since the rendered text does not show where they are."""
    turns_without_stop: int
    """Located turns that no stop token ends."""


# the target itself is not in it: fine-tuned models with one tokenizer share their prepared data, and so do runs
# that capture other layers
class DataKey(Model):
    """Everything that decides the prepared documents; its hash names their folder."""

    format_version: Literal[3] = 3
    """Of the files; a folder of another version is made anew."""
    data_sha256: Sha256
    """Content of the source."""
    tokenizer_sha256: Sha256
    """Content of the tokenizer's files."""
    template_sha256: Sha256
    """The chat template's source."""
    template_kwargs: dict[str, Any]
    """Arguments of the chat template."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer, ascending."""
    keep_ids: tuple[int, ...]
    """Tokens of `draft.keepTokens`, ascending."""
    max_length: int
    """Longest document, in tokens."""
    max_samples: int | None
    """Rows that are read at most."""
    eval_fraction: str
    """Share that is held out; a text, so that its spelling is one."""
    split_turns: bool
    """One document per assistant turn."""
    vocab_size: int
    """D as asked for."""
    target_vocab_size: int
    """V of the target."""
    initial_draft: Sha256 | None = None
    """Of the draft to start from, whose vocabulary is kept; its files lie beside the documents."""

    def folder(self) -> str:
        """Name of the folder below `prepare/`: 16 hex digits."""
        # sorted and without spaces, so that neither pydantic nor the order in a YAML file changes the name
        # and without what came later where it is not used, so that folders of earlier versions are found
        later = {"initial_draft"} if self.initial_draft is None else set()
        decisive = self.model_dump(mode="json", exclude=later)
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class PreparedManifest(Model):
    """What is in the folder of one prepared data set. Nothing in it depends on how it is trained from."""

    key: DataKey
    """What decided the content."""
    counts: DatasetCounts
    """Exact counts."""
    mask: MaskReport
    """How answers were found."""
    bos_id: int | None
    """The tokenizer's bos. Only the chat template writes it: it is in the tokens if the template has it."""
    vocab_size: int
    """D as built."""
    vocab_coverage: float
    """Share of the training documents' supervised tokens inside the draft vocabulary."""
    vocab_filled: int
    """Members that training documents never use."""
    tokens_sha256: Sha256
    """Hash of tokens, spans and split, document by document."""
    files_sha256: dict[str, Sha256]
    """Hash of each file that documents are read from, by its name."""
    vocabulary_sha256: Sha256
    """Hash of vocabulary.bin."""
    bytes: int
    """Size of the binary files together."""
    warnings: tuple[str, ...] = ()
    """What a person should know."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, ascending."""
        return self.key.stop_ids

    @property
    def data_sha256(self) -> str:
        """Hash of the source's content."""
        return self.key.data_sha256
