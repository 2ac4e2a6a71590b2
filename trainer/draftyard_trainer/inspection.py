"""`draftyard inspect WORKSPACE`: what is stored, by which key, how large, how faithful; and one document in colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import conversations_path, export_path, hidden_states_path, prepared_path
from draftyard_api.reasons import Reason
from draftyard_trainer import inventory
from draftyard_trainer.data.conversations import Counted
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.display import size
from draftyard_trainer.inventory import Cache, Conversations, Draft, PreparedFolder
from draftyard_trainer.storage.store import Store

SUPERVISED, NOT_SUPERVISED = "bold green", "dim"
SHOWN_TOKENS = 800
SHOWN_DIGITS = 12
"""Of a hash: enough to tell one from another."""


def inspect(store: Store, console: Console) -> None:
    """Print what lies in a workspace."""
    folders = inventory.prepared_folders(store)
    tokens_of = {folder.manifest.tokens_sha256: prepared_path(folder.name) for folder in folders if folder.manifest}
    blocks = [
        *map(conversations_block, inventory.conversations(store)),
        *map(prepared_block, folders),
        *(cache_block(cache, tokens_of) for cache in inventory.caches(store)),
        *map(draft_block, inventory.drafts(store)),
    ]
    for title, lines in blocks:
        console.print(title, style="bold", highlight=False)
        for name, value in lines.items():
            console.print(f"  {name:<16} {value}", highlight=False, soft_wrap=True)
    if not blocks:
        console.print(f"{store.uri}: nothing is stored here yet", highlight=False, soft_wrap=True)


Block = tuple[str, dict[str, str]]
"""A title, and lines of names and values."""
UNREADABLE = {"state": "cannot be read by this version"}


def conversations_block(found: Conversations) -> Block:
    """The target's own answers."""
    counts = sum((shard.counts for shard in found.complete), Counted())
    skipped = ", ".join(f"{count} {reason}" for reason, count in counts.skipped.items())
    return conversations_path(found.key, found.num_shards), {
        "shards": f"{len(found.complete)} of {found.num_shards} complete",
        "conversations": f"{counts.conversations} from {counts.rows} rows",
        "skipped": skipped or "none",
        "answers": (
            f"{counts.answers} of {counts.tokens} tokens, {counts.unfinished} cut at their limit, {counts.respelled} "
            "with other tokens when their text is read again"
        ),
        "bytes": size(sum(shard.bytes for shard in found.complete)),
    }


def prepared_block(folder: PreparedFolder) -> Block:
    """Documents, tokens and the draft vocabulary."""
    title, manifest = prepared_path(folder.name), folder.manifest
    if manifest is None:
        return title, UNREADABLE
    counts = manifest.counts
    skipped = ", ".join(f"{count} {reason}" for reason, count in counts.skipped.items())
    return title, {
        "documents": f"{counts.documents} from {counts.rows} rows, {counts.held_out_documents} held out",
        "skipped": skipped or "none",
        "tokens": f"{counts.tokens}, {counts.loss_tokens / max(counts.tokens, 1):.0%} supervised",
        "draft vocabulary": f"{manifest.vocab_size} tokens, coverage {manifest.vocab_coverage:.2%}",
        "bytes": size(manifest.bytes),
    }


def cache_block(cache: Cache, tokens_of: Mapping[str, str]) -> Block:
    """Hidden states by key; `tokens_of` has the prepared folders by the hash of their tokens."""
    title, key, shards = hidden_states_path(cache.key, cache.num_shards), cache.document, cache.complete
    if key is None:
        return title, UNREADABLE
    tokens, stored = sum(shard.tokens for shard in shards), sum(shard.bytes for shard in shards)
    raw = 2 * sum(len(key.aux_layers) * shard.tokens + shard.label_rows for shard in shards) * (cache.width or 0)
    lines = {
        "target": f"{key.target[:SHOWN_DIGITS]}, layers {', '.join(map(str, key.aux_layers))}, {key.dtype}",
        "tokens of": tokens_of.get(key.tokens_sha256, f"{key.tokens_sha256[:SHOWN_DIGITS]}, which is not here"),
        "shards": f"{len(shards)} of {cache.num_shards} complete",
        "documents": f"{sum(shard.documents for shard in shards)}, {sum(len(s.skipped) for s in shards)} not finite",
        "codec": key.codec + (f", {stored / raw:.1%} of bfloat16" if raw else ""),
        "bytes": size(stored) + (f", {size(stored / tokens)} a token" if tokens else ""),
        "used by": ", ".join(cache.users) or "no run",
    }
    report = cache.fidelity
    if report.rows:
        lines["labels"] = (
            f"{report.agreement:.2%} of the most likely tokens stay; KL {report.mean:.1e} nats on average, "
            f"{report.p99:.1e} at the 99th percentile ({report.rows} rows)"
        )
        lines["errors"] = ", ".join(f"{error:.4f}" for error in report.relative_errors) + " (layers, final state)"
    return title, lines


def draft_block(draft: Draft) -> Block:
    """An exported draft."""
    title, manifest = export_path(draft.run), draft.manifest
    if manifest is None:
        return title, UNREADABLE
    return title, {
        "target": manifest.target.model,
        "published": "yes" if draft.is_published else "no",
        "step": f"{manifest.checkpoint.step} ({manifest.checkpoint.why})",
        "bytes": size(sum(record.bytes for record in manifest.files.values())),
    }


# -- One document ---------------------------------------------------------------------------------


def show_document(
    store: Store, console: Console, doc_id: int, prepared: str | None = None, tokenizer: Path | None = None
) -> None:
    """Print a document as the target reads it; what is supervised is bold and green.

    Raises Failure: BAD_TASK for what does not exist or is not clear, STALE_INPUT and UNSUPPORTED for what is broken.
    """
    names = [folder.name for folder in inventory.prepared_folders(store)]
    if prepared is None and len(names) != 1:
        raise wrong("--prepared", "none", ", ".join(names) or "no folder, since nothing is prepared in this workspace")
    dataset = PreparedDataset.open(store, prepared or names[0])
    if not 0 <= doc_id < len(dataset):
        raise wrong("--document", str(doc_id), f"0 to {len(dataset) - 1}")
    if tokenizer is None:
        raise wrong("--tokenizer", "none", "the folder of the target, whose tokenizer made the tokens")
    document = dataset.document(doc_id)
    split = "held out" if dataset.held_out[doc_id] else "training"
    loaded = load_tokenizer(tokenizer, str(tokenizer), trust_remote_code=False)
    console.print(
        f"document {doc_id} of {len(dataset)} ({split}): {document.num_tokens} tokens, "
        f"{int(document.mask().sum())} supervised in {len(document.spans)} spans",
        highlight=False,
    )
    console.print(coloured(document, loaded), highlight=False, soft_wrap=True)


def wrong(option: str, given: str, accepted: str) -> Failure:
    """Something typed that nothing can be shown for."""
    return Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"{option}: given {given}; accepted: {accepted}")


def coloured(document: Document, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text of a document, piece by piece; cut after `SHOWN_TOKENS`."""
    text = Text()
    place = 0
    for start, length in [*document.spans.tolist(), (document.num_tokens, 0)]:
        # decoded in runs, not token by token: half a character is no text
        for first, end, style in ((place, start, NOT_SUPERVISED), (start, start + length, SUPERVISED)):
            ids = document.tokens[first : min(end, SHOWN_TOKENS)]
            text.append(str(tokenizer.decode(ids.tolist())) if len(ids) else "", style=style)
        place = start + length
    if document.num_tokens > SHOWN_TOKENS:
        text.append(f" ... and {document.num_tokens - SHOWN_TOKENS} more tokens", style="italic")
    return text
