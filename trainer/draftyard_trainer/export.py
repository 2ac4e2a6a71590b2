"""Export: a draft becomes the folder that SGLang and vLLM load, after every conformance rule has passed.

The folder itself is the portable form, which both engines load as it is; in `speculators/` the same draft lies in the
form of that library, for `vllm serve <folder>` without further flags.

Files are written aside, checked, described in `MANIFEST.json`, and then appear by one rename: a draft that breaks a
rule is never seen. `publish` comes later, from the stage that decides, and writes `PUBLISHED.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

import draftyard_api
from draftyard_api import serving
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, PUBLISHED, export_path
from draftyard_api.progress import Acceptance
from draftyard_api.reasons import Reason
from draftyard_api.spec import Target
from draftyard_trainer.conformance import RULES, Finding, check, has_errors
from draftyard_trainer.conformance_rules import TargetFacts, TextHashes
from draftyard_trainer.data.manifest import DataKey
from draftyard_trainer.draft import speculators
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.files import engine_config
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE, read_files
from draftyard_trainer.draft.manifest import (
    FileRecord,
    Manifest,
    ProbeResult,
    Provenance,
    Published,
    RuleResult,
    ServeLines,
    Settings,
)
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.probe import measure_difference, record_probe
from draftyard_trainer.storage.store import Store

ENGINES = {
    "eagle3": ("vLLM 0.32.0: loaded and served", "SGLang: as in its sources of early and mid 2026"),
    "eagle3.1": ("vLLM of mid 2026 or later", "SGLang of mid 2026 or later"),
}
"""What each profile was checked with, or needs: older engines ignore the keys of eagle3.1, and compute otherwise."""
LLAMA = ("LlamaForCausalLM",)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an export is checked against."""

    facts: TargetFacts
    sample: Sample
    """A stored document, for the numeric probe."""
    embedding: Tensor
    """The target's, `[V, H]`."""
    ttt_steps: int
    """Steps of the probe: those of the training."""
    target_architectures: tuple[str, ...] = LLAMA
    """As the target's config names them."""


def export_draft(store: Store, name: str, draft: DraftModel, provenance: Provenance, evidence: Evidence) -> str:
    """Write the folder `name` (`export/<run>`), replacing an earlier one. Returns the sha256 of its manifest.

    Tensors get the target's dtype, since an engine would cast them to it anyway. Raises Failure(NOT_CONFORMANT) naming
    every broken rule; nothing is visible then, and an earlier export stays.
    """
    facts = evidence.facts
    # The probe runs this very draft; the embedding is no part of its state, so it may have none yet.
    draft.attach_embedding(evidence.embedding)
    with store.create_folder(name) as folder:
        write_files(folder, draft, facts.dtype)
        probe = record_probe(draft, evidence.embedding, evidence.sample, evidence.ttt_steps, facts.dtype)
        findings = check(folder, facts, probe)
        # Leaving the block with an exception removes what was staged: nobody ever sees it.
        refuse_errors(findings)
        write_speculators(folder, draft, facts.dtype, provenance.target.model, evidence.target_architectures)
        measured = ProbeResult(
            steps=len(probe.logits),
            # Measured again for the record: the rule itself only says that it holds.
            max_abs_difference=measure_difference(read_files(folder), probe),
            max_abs_rounding=probe.max_abs_rounding,
        )
        content = describe(folder, draft.config, provenance, facts, findings, measured)
        (folder / MANIFEST).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def target_facts(
    config: DraftConfig, target: Mapping[str, Any], key: DataKey, dtype: str, served: TextHashes | None = None
) -> TargetFacts:
    """Facts from what the trainer has: the draft's config, the target's text config, the key of the prepared data.

    `served` are hashes of the target's text files as they are now; without them (a trainer that never opens the
    target) they are taken to be those of the data. The profile follows from the flags.
    """
    captured = TextHashes(key.tokenizer_sha256, key.template_sha256)
    # The only flags that a profile sets; norm_before_residual belongs to none, and is refused.
    profile = "eagle3.1" if config.fc_norm or config.feed_normed_hidden or config.norm_before_fc else "eagle3"
    return TargetFacts(
        profile=profile,
        vocab_size=int(target["vocab_size"]),
        # Some architectures have no limit; then the draft's own is what it was derived with.
        max_position_embeddings=int(target.get("max_position_embeddings", config.max_position_embeddings)),
        rope_theta=config.rope_theta,
        rope_scaling=config.rope_scaling,
        aux_layers=config.aux_layers,
        marker_ids=tuple(sorted({*key.stop_ids, *key.keep_ids})),
        dtype=dtype,
        captured=captured,
        served=served or captured,
        engines=ENGINES[profile],
    )


def write_files(folder: Path, draft: DraftModel, dtype: str) -> None:
    """`config.json` and `model.safetensors` of the portable profile."""
    # Never save_pretrained: what it writes changes with the version of the library.
    config = json.dumps(engine_config(draft.config, dtype), indent=1, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(config + "\n")
    # No embedding: it is no part of the state dict, and engines take the target's.
    tensors = {name: to_export(tensor, dtype) for name, tensor in draft.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def write_speculators(
    folder: Path, draft: DraftModel, dtype: str, target: str, target_architectures: tuple[str, ...]
) -> None:
    """The second form, in its own folder below. Raises Failure(NOT_CONFORMANT) unless it is the portable draft."""
    below = folder / speculators.FOLDER
    below.mkdir()
    config = speculators.speculators_config(draft.config, dtype, serving.location(target), target_architectures)
    (below / CONFIG_FILE).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    tensors = {speculators.their_name(name): to_export(tensor, dtype) for name, tensor in draft.state_dict().items()}
    save_file(tensors, below / WEIGHTS_FILE, metadata={"format": "pt"})
    wrong = speculators.check_form(below, read_files(folder))
    if wrong:
        raise Failure(ExitCode.NOT_CONFORMANT, Reason.CONFORMANCE_FAILED, f"export: {'; '.join(wrong)}"[:1024])


def to_export(tensor: Tensor, dtype: str) -> Tensor:
    """A tensor as it is written: weights in the export's dtype, offsets and masks as they are, whole and on the CPU."""
    if tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, dtype))
    return tensor.detach().cpu().contiguous()


def refuse_errors(findings: list[Finding]) -> None:
    """Raise Failure(NOT_CONFORMANT) with every broken rule, unless only warnings were found."""
    if has_errors(findings):
        # All of them at once: each attempt to export comes after hours of training.
        broken = "; ".join(f"rule {finding.rule}: {finding.message}" for finding in findings)
        raise Failure(ExitCode.NOT_CONFORMANT, Reason.CONFORMANCE_FAILED, f"export: {broken}"[:1024])


def describe(
    folder: Path,
    config: DraftConfig,
    provenance: Provenance,
    facts: TargetFacts,
    findings: list[Finding],
    probe: ProbeResult,
) -> bytes:
    """The manifest of the files in `folder`."""
    # Errors were refused before, so whatever is left is a warning.
    warnings = {finding.rule: finding.message for finding in findings}
    manifest = Manifest(
        **{name: getattr(provenance, name) for name in Provenance.model_fields},
        product=draftyard_api.__version__,
        aux_layers=config.aux_layers,
        engine_layer_ids=config.aux_layers,
        nested_layer_ids=tuple(layer - 1 for layer in config.aux_layers),
        flags={
            "fcNorm": config.fc_norm,
            "feedNormedHidden": config.feed_normed_hidden,
            "normBeforeFc": config.norm_before_fc,
            "normBeforeResidual": config.norm_before_residual,
        },
        rules=tuple(
            RuleResult(
                rule=rule.number,
                text=rule.text,
                result="warn" if rule.number in warnings else "pass",
                message=warnings.get(rule.number),
            )
            for rule in RULES
        ),
        probe=probe,
        engines=facts.engines,
        files={
            path.relative_to(folder).as_posix(): FileRecord.of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    )
    return manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()


@dataclass(frozen=True)
class ExportedDraft:
    """An export whose files were found whole."""

    manifest: Manifest
    manifest_sha256: str
    folder: Path


def open_export(store: Store, run: str, fingerprint: str) -> ExportedDraft:
    """The export of a run, every file checked against its manifest.

    Raises Failure(STALE_INPUT) when it is gone, broken, or of another fingerprint: then `train` must run again.
    """
    name = export_path(run)
    try:
        content = store.read(f"{name}/{MANIFEST}")
        manifest = Manifest.model_validate_json(content)
    except FileNotFoundError as error:
        raise stale(name, f"no {MANIFEST}") from error
    except ValidationError as error:
        raise stale(name, f"{MANIFEST} is broken ({error.errors()[0]['msg']})") from error
    # An export that Overwrite has not replaced yet, or one of another object with this name.
    if manifest.fingerprint != fingerprint:
        raise stale(name, f"given fingerprint {manifest.fingerprint}; accepted: {fingerprint}")
    # Sizes first: they cost nothing, and copies and hashes of a large draft take seconds.
    wrong = [file for file, expected in manifest.files.items() if store.size(f"{name}/{file}") != expected.bytes]
    if not wrong:
        folder = store.fetch_folder(name, tuple(manifest.files))
        wrong = [file for file, expected in manifest.files.items() if FileRecord.of(folder / file) != expected]
    if wrong:
        raise stale(name, f"{wrong[0]} is not what its manifest says")
    return ExportedDraft(manifest, hashlib.sha256(content).hexdigest(), folder)


def stale(name: str, what: str) -> Failure:
    """The export cannot be used as it lies there."""
    return Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, f"{name}: {what}; train must run again")


def publish(store: Store, run: str, target: Target, acceptance: Acceptance, settings: Settings | None = None) -> str:
    """Write `PUBLISHED.json` beside the export, last of all. Returns the draft's location."""
    name = export_path(run)
    content = store.read(f"{name}/{MANIFEST}")
    # The manifest is read back and not passed in: what is published is what lies there.
    uri = f"{store.uri}/{name}"
    model, draft = serving.location(target.model), serving.location(uri)
    published = Published(
        manifest_sha256=hashlib.sha256(content).hexdigest(),
        fingerprint=Manifest.model_validate_json(content).fingerprint,
        # Simulated values have no settings: they come from training.
        acceptance=acceptance,
        settings=settings,
        serve=ServeLines(
            vllm=serving.vllm(model, draft, acceptance.draft_tokens),
            sglang=serving.sglang(model, draft, acceptance.draft_tokens, settings.tree if settings else None),
        ),
    )
    store.publish(f"{name}/{PUBLISHED}", published.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())
    return uri
