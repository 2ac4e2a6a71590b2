"""What stored hidden states take, cost and keep, on a real target and real conversations.

    python bench/data.py --out build/bench/data.json [--only codecs,memory]

`--only` measures some parts again, and keeps what the JSON has of the others. Two whole runs (`none` and `balanced`,
all else equal) go through `draftyard run`; the rest is measured beside them. It ends with one line per figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minio
import real
import torch
import yaml

import states_memory
from draftyard_api import estimate
from draftyard_api.document import DraftTraining
from draftyard_api.names import RESULT_FILE, Stage, export_path, shard_path, train_path
from draftyard_api.progress import StageResult
from draftyard_api.schema import S3Access
from draftyard_api.spec import Target, Train
from draftyard_api.targets import TargetShape
from draftyard_api.task import StoredStatesRef, TrainTask
from draftyard_trainer import inventory
from draftyard_trainer.data.building import Recipe, batches, build_documents, render_rows
from draftyard_trainer.data.files import read_rows
from draftyard_trainer.data.prepared import PreparedDataset, PreparedWriter
from draftyard_trainer.data.tally import Tally
from draftyard_trainer.data.template import ChatTemplate
from draftyard_trainer.data.tokenizer import load_tokenizer, stop_ids
from draftyard_trainer.data.tokens import TokenRules
from draftyard_trainer.hidden_states import calibration, fidelity, record
from draftyard_trainer.hidden_states.codec import (
    CODECS,
    Layout,
    StateCodec,
)
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.source import Source
from draftyard_trainer.order import epoch_steps
from draftyard_trainer.parallel import World
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.bucket import Bucket
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.s3 import S3Store
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate
from draftyard_trainer.train import build_trainer, row_plan
from report import Bar, finish

AUX_LAYERS = (2, 15, 27)
CONVERSATIONS = 2000
DOCUMENTS = 48
STEPS = 8
ROWS = (1_000, 10_000, 100_000)
SHARES = {"lossless": 0.72, "balanced": 0.46, "compact": 0.36}
"""Largest share of the bfloat16 bytes, by codec."""


def described(example: Path, codec: str) -> dict[str, Any]:
    """The training of the example with another codec, ungated, as a document whose files are absolute."""
    document: dict[str, Any] = yaml.safe_load(example.read_text())
    document["metadata"]["name"] = codec
    document["spec"]["hiddenStates"]["codec"] = codec
    document["spec"]["evaluate"].pop("minAcceptanceLength")
    for holder, field in ((document["spec"]["target"], "model"), (document["spec"]["data"]["source"]["file"], "uri")):
        holder[field] = f"file://{(example.parent / holder[field].removeprefix('file://')).resolve()}"
    return document


def run(example: Path, workspace: Path, codec: str) -> DraftTraining:
    """The demo with another codec, from its conversations to its acceptance length."""
    document = described(example, codec)
    file = workspace / f"{codec}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "draftyard_api.cli", "run", str(file), "--workspace", str(workspace)]
    subprocess.run(command, check=True)
    return DraftTraining.model_validate(document)


def result_of(workspace: Path, codec: str, label: str) -> StageResult:
    """What a stage of a run left."""
    return StageResult.model_validate_json((workspace / "runs" / codec / label / RESULT_FILE).read_bytes())


# -- Codecs ---------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> float:
    """Seconds, the best of three."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def codecs(target: CapturedTarget, dataset: PreparedDataset) -> dict[str, Any]:
    """Size, rate of one core, and fidelity of every label row, on documents that sizes were not measured on."""
    chosen = calibration.choose(dataset)
    started = time.perf_counter()
    calibrating = [target.capture([calibration.document_of(dataset, doc_id)])[0] for doc_id in chosen]
    channels = calibration.measure(calibrating, len(AUX_LAYERS))
    calibrated = time.perf_counter() - started
    others = [doc_id for doc_id in range(len(dataset)) if doc_id not in chosen][:DOCUMENTS]
    samples = [target.capture([dataset.document(doc_id)])[0] for doc_id in others]
    raw = sum(2 * (sample.aux.numel() + sample.last.numel()) for sample in samples)
    found: dict[str, Any] = {"calibration_seconds": calibrated}
    threads = torch.get_num_threads()
    for name in CODECS:
        codec = StateCodec.of(Layout(len(AUX_LAYERS), samples[0].last.shape[1], target.dtype, name), channels)
        torch.set_num_threads(1)
        packed = [codec.pack(sample) for sample in samples]
        records = [record.encode(each, codec) for each in packed]
        # with all that a record is: its checksum, its tokens and its labels
        encode = timed(lambda codec=codec: [record.encode(codec.pack(sample), codec) for sample in samples])
        decode = timed(
            lambda codec=codec, records=records: [codec.unpack(record.decode(each, codec)) for each in records]
        )
        torch.set_num_threads(threads)
        stored = sum(header.aux_bytes + header.last_bytes for header in map(record.read_header, records))
        stored += 4 * sum(each.aux.scales.numel() + each.last.scales.numel() for each in packed)
        found[name] = {
            "share": stored / raw,
            "encode_gb_per_second": raw / encode / 1e9,
            "decode_gb_per_second": raw / decode / 1e9,
            "estimated": sum(record.estimated_bytes(sample.document, codec.layout) for sample in samples),
            "real": sum(record.aligned(len(each)) for each in records),
        }
        if codec.layout.is_rounded:
            found[name]["fidelity"] = labels(samples, codec, channels, target)
    return found


def labels(
    samples: list[Sample], codec: StateCodec, channels: Any, target: CapturedTarget
) -> dict[str, float | list[float]]:
    """Of every row, not of one in 16."""
    fidelity.EVERY = 1
    report = fidelity.total(fidelity.measure(sample, codec, channels, target.head) for sample in samples)
    return {
        "rows": report.rows, "mean": report.mean, "p99": report.p99, "agreement": report.agreement,
        "errors": list(report.relative_errors),
    }  # fmt: skip


# -- Reading --------------------------------------------------------------------------------------


def waiting(store: Any, spec: DraftTraining, prepared: str, ref: StoredStatesRef) -> float:
    """Share of some training steps that waits for states; the first step, which fills the buffers, is left out."""
    dataset = PreparedDataset.open(store, prepared)
    source: Source = open_stored(store, ref, dataset)
    task = TrainTask(
        run="bench", uid="u", workspace=store.uri, mode="Offline", target=spec.spec.target, draft=spec.spec.draft,
        aux_layers=AUX_LAYERS, prepared=prepared, hidden_states=ref, train=spec.spec.train, publishes=True,
        export=spec.spec.export, fingerprint="f",
    )  # fmt: skip
    trainer = build_trainer(task, dataset, source, World(0, 1, torch.device("cpu")))
    train: Train = spec.spec.train
    steps = epoch_steps(row_plan(task, dataset, source), 0, train.tokens_per_batch // train.row_tokens, 0)[: STEPS + 1]
    read = trainer.read_ahead(steps)
    trainer.step(steps[0], read)
    started, waited = time.perf_counter(), 0.0
    for step in steps[1:]:
        waited += trainer.step(step, read).waited
    return waited / (time.perf_counter() - started)


def waiting_for_bucket(local: LocalStore, spec: DraftTraining, prepared: str, ref: StoredStatesRef) -> float:
    """The same from a bucket of a server on this machine."""
    with tempfile.TemporaryDirectory() as folder, minio.started(Path(folder)) as server:
        os.environ.update(AWS_ACCESS_KEY_ID=minio.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=minio.SECRET_KEY)
        access = S3Access(endpoint=server.endpoint)
        bucket = Bucket.of("bench", access, "workspace")
        bucket.client.create_bucket(Bucket="bench")
        for name in (*local.list("prepare"), *local.list(f"hidden-states/{ref.key}")):
            bucket.put(name, local.read(name))
        return waiting(S3Store(bucket, "", Path(folder) / "downloads"), spec, prepared, ref)


# -- Memory ---------------------------------------------------------------------------------------


def memory_of_prepare(workspace: Path) -> dict[int, int]:
    """Peak memory of the stage, bytes, by number of rows: short conversations with ids of their own."""
    peaks = {}
    for rows in ROWS:
        folder = workspace / f"rows-{rows}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "chat.jsonl").open("w") as file:
            for number in range(rows):
                said = f"Question {number}: what is {number} times {number % 97}?"
                turns = [
                    {"role": "user", "content": said},
                    {"role": "assistant", "content": f"{number * (number % 97)}."},
                ]
                file.write(json.dumps({"id": str(number), "messages": turns}) + "\n")
        task = json.loads((workspace / "runs" / "none" / "prepare" / "task.json").read_text())
        task["workspace"] = f"file://{folder}"
        task["data"] = {**task["data"], "maxSamples": None, "source": {"file": {"uri": f"file://{folder}/chat.jsonl"}}}
        (folder / "task.json").write_text(json.dumps(task))
        environment = {"DRAFTYARD_STATE_DIR": str(folder / "state"), "DRAFTYARD_TERMINATION_LOG": str(folder / "log")}
        command = [sys.executable, "-m", "draftyard_api.cli", "prepare", "--task", str(folder / "task.json")]
        subprocess.run(command, check=True, env={"PATH": "/usr/bin:/bin", **environment, "HF_HUB_OFFLINE": "1"})
        result = StageResult.model_validate_json((folder / "state" / RESULT_FILE).read_bytes())
        peaks[rows] = int(result.peak_memory_bytes or 0)
    return peaks


# -- Tokens ---------------------------------------------------------------------------------------


def tokenising(conversations: Path) -> dict[str, float]:
    """Conversations a second: through `prepare`'s own stream, and of the bare tokenizer on the same rendered texts."""
    folder = real.fetch("qwen3")
    tokenizer = load_tokenizer(folder, "qwen3", trust_remote_code=False)
    rules = TokenRules(frozenset(stop_ids(folder, {}, tokenizer, ())), 4096)
    recipe = Recipe(
        ChatTemplate(tokenizer, {}), tokenizer.backend_tokenizer, rules, split_turns=False, eval_fraction=0.01
    )
    rows = list(itertools.islice(read_rows(conversations), CONVERSATIONS))
    groups = [
        [text.text for row in batch for text in row.texts] for batch in batches(render_rows(rows, recipe, Tally()))
    ]
    seconds: dict[str, list[float]] = {"prepare": [], "bare": []}
    for _ in range(3):
        started = time.perf_counter()
        for texts in groups:
            tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds["bare"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as staged, PreparedWriter(Path(staged), len(tokenizer)) as writer:
            build_documents(rows, recipe, writer, Reporter(Stage.PREPARE))
        seconds["prepare"].append(time.perf_counter() - started)
    return {name: sum(map(len, groups)) / min(taken) for name, taken in seconds.items()}


# -- All of it ------------------------------------------------------------------------------------


WANTED = {
    "acceptance", "generate_seconds", "first_part", "tokens", "waiting", "codecs", "prepare_peak_bytes",
    "states_peak_bytes", "conversations_per_second",
}  # fmt: skip
PARTS = ("runs", "waiting", "codecs", "memory", "states-memory", "tokens")


def measure(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """The parts that are asked for, into one JSON."""
    workspace = options.workspace.resolve()
    store = LocalStore(workspace)
    if "states-memory" in options.only:
        found["states_peak_bytes"] = states_memory.peaks(workspace / "states-memory", ROWS)
    if "tokens" in options.only:
        source = described(options.example, "none")["spec"]["data"]["source"]["file"]["uri"]
        found["conversations_per_second"] = tokenising(Path(source.removeprefix("file://")))
    if set(options.only) <= {"states-memory", "tokens"}:
        return
    # what is finished there is not run again
    specs = {codec: run(options.example, workspace, codec) for codec in ("none", "balanced")}
    prepared = result_of(workspace, "none", "prepare").prepared
    assert prepared is not None
    if "runs" in options.only:
        whole_runs(store, specs, options.model.resolve(), prepared.counts, found)
    if "waiting" in options.only:
        (cache,) = (each for each in inventory.caches(store) if each.document and each.document.codec == "balanced")
        ref = StoredStatesRef(key=cache.key, shards=(0,), num_shards=1)
        found["waiting"] = {
            "local": waiting(store, specs["balanced"], prepared.prepared, ref),
            "minio": waiting_for_bucket(store, specs["balanced"], prepared.prepared, ref),
        }
    if "codecs" in options.only:
        model = Target(model=f"file://{options.model.resolve()}")
        target = CapturedTarget.load(locate(model), "bfloat16", AUX_LAYERS)
        found["codecs"] = codecs(target, PreparedDataset.open(store, prepared.prepared))
    if "memory" in options.only:
        found["prepare_peak_bytes"] = memory_of_prepare(workspace)


def whole_runs(
    store: LocalStore, specs: dict[str, DraftTraining], model: Path, counts: Any, found: dict[str, Any]
) -> None:
    """What the two runs left."""
    names = ("acceptance", "generate_seconds", "stored_bytes", "estimated_bytes", "data_share_of_run")
    found.update({name: {} for name in names})
    shape = TargetShape.from_config(json.loads((model / "config.json").read_text()))
    for codec, spec in specs.items():
        found["acceptance"][codec] = json.loads(store.read(f"{export_path(codec)}/evaluation.json"))["length"]
        generated = result_of(store.root, codec, "generate-00000")
        found["generate_seconds"][codec] = generated.seconds
        found["stored_bytes"][codec] = generated.bytes
        found["estimated_bytes"][codec] = estimate.hidden_state_bytes(spec.spec, shape, estimate.counted(counts))
        lines = [json.loads(line) for line in store.read(f"{train_path(codec)}/metrics.jsonl").decode().splitlines()]
        found["data_share_of_run"][codec] = sum(line["dataSeconds"] for line in lines) / sum(
            line["seconds"] for line in lines
        )
    found["first_part"] = first_part_estimate(store, specs["balanced"], shape, counts)
    (cache,) = (each for each in inventory.caches(store) if each.document and each.document.codec == "balanced")
    found["tokens"] = {"estimated": counts.tokens, "real": sum(shard.tokens for shard in cache.complete)}


def first_part_estimate(store: LocalStore, spec: DraftTraining, shape: TargetShape, counts: Any) -> dict[str, int]:
    """All bytes, as the plan says them when the first part of a shard is there."""
    (cache,) = (each for each in inventory.caches(store) if each.document and each.document.codec == "balanced")
    part = json.loads(store.read(f"{shard_path(cache.key, 1, 0)}/part-000.json"))
    places = part["records"]
    stored = {
        "key": cache.key, "shard": 0, "shards": 1, "documents": len(places), "bytes": part["bytes"],
        "tokens": sum(place["tokens"] for place in places), "labelRows": sum(place["labels"] for place in places),
    }  # fmt: skip
    said = json.dumps({"stage": "generate", "seconds": 1.0, "hiddenStates": stored})
    result = StageResult.model_validate_json(said)
    amount = estimate.counted(counts)
    made = estimate.measured(estimate.estimate(spec.spec, shape, amount), spec.spec, shape, amount, [result])
    return {"estimated": made.bytes.hidden_states, "real": sum(shard.bytes for shard in cache.complete)}


def bars(found: dict[str, Any]) -> list[Bar]:
    """One for each figure."""
    codec, label = found["codecs"], found["codecs"]["balanced"]["fidelity"]
    lossy = tuple(SHARES)
    states = found["states_peak_bytes"]
    peaks = {"prepare": found["prepare_peak_bytes"], "generate": states["generate"], "reader": states["read"]}
    none, balanced = found["acceptance"]["none"], found["acceptance"]["balanced"]
    first = found["first_part"]
    seconds = found["generate_seconds"]
    rates = found["conversations_per_second"]
    encoding = seconds["balanced"] - codec["calibration_seconds"]
    return [
        *(Bar(f"bytes/{name}", codec[name]["share"], "<=", most) for name, most in SHARES.items()),
        Bar("labels/balanced-kl-mean", label["mean"], "<=", 1e-3),
        Bar("labels/balanced-agreement", label["agreement"], ">=", 0.99),
        *(Bar(f"decode-gb-per-core/{name}", codec[name]["decode_gb_per_second"], ">=", 1.0) for name in lossy),
        *(Bar(f"encode-gb-per-core/{name}", codec[name]["encode_gb_per_second"], ">=", 0.2) for name in lossy),
        # sizes of channels are measured once for all shards: of a run as short as this one they are a large share
        Bar("encode/share-of-generate", encoding / seconds["none"] - 1, "<=", 0.1),
        Bar("encode/share-with-calibration", seconds["balanced"] / seconds["none"] - 1, "<=", 0.1),
        Bar("data-wait/local", found["waiting"]["local"], "<=", 0.02),
        Bar("data-wait/minio", found["waiting"]["minio"], "<=", 0.05),
        Bar("estimate/tokens", abs(found["tokens"]["estimated"] / found["tokens"]["real"] - 1), "<=", 0.0),
        Bar("estimate/none", abs(found["estimated_bytes"]["none"] / found["stored_bytes"]["none"] - 1), "<=", 0.02),
        *(Bar(f"estimate/{each}-over-real", codec[each]["estimated"] / codec[each]["real"], ">=", 1) for each in lossy),
        Bar("estimate/after-first-part", abs(first["estimated"] / first["real"] - 1), "<=", 0.03),
        Bar("tokenise/share-of-bare", rates["prepare"] / rates["bare"], ">=", 0.7),
        *(
            Bar(f"memory/{name}-100k-over-1k", most / least, "<=", 1.1)
            for name, (least, *_, most) in ((name, each.values()) for name, each in peaks.items())
        ),
        Bar("acceptance/balanced-against-none", abs(balanced / none - 1), "<=", 0.01),
    ]  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """What each codec takes and loses."""
    lines = [
        "| codec | bytes, of bfloat16 | encode, decode: GB/s a core | error of states | KL of labels | agreement |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in CODECS:
        each = found["codecs"][name]
        report = each.get("fidelity")
        lost = ["0", "0", "100 %"]
        if report:
            lost = [f"{max(report['errors']):.3f}", f"{report['mean']:.1e}", f"{report['agreement']:.2%}"]
        rates = f"{each['encode_gb_per_second']:.2f}, {each['decode_gb_per_second']:.2f}"
        lines.append(f"| {' | '.join((f'`{name}`', format(each['share'], '.3f'), rates, *lost))} |")
    none, balanced = found["acceptance"]["none"], found["acceptance"]["balanced"]
    rates = found["conversations_per_second"]
    peaks = {"`prepare`": found["prepare_peak_bytes"], "`generate`": found["states_peak_bytes"]["generate"]}
    peaks["the reader"] = found["states_peak_bytes"]["read"]
    return [
        *lines,
        "",
        f"- A draft of `balanced` states reaches an acceptance length of {balanced:.3f}, one of `none` {none:.3f}.",
        *(f"- Peak memory of {name}: {peak_text(each)}." for name, each in peaks.items()),
        f"- `prepare`: {rates['prepare']:.0f} conversations a second; the bare tokenizer: {rates['bare']:.0f}.",
    ]


def peak_text(peaks: dict[str, int]) -> str:
    """Peaks by number of documents."""
    return ", ".join(f"{peak / 2**20:.0f} MiB with {int(count):,} documents" for count, peak in peaks.items())


def main() -> None:
    """Measure, write one JSON and the page, print the bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--example", type=Path, default=Path("examples/smollm2-demo.yaml"))
    parser.add_argument("--model", type=Path, default=Path("build/fixtures/smollm2-135m-instruct"))
    parser.add_argument("--workspace", type=Path, default=Path("build/bench/data"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    options = parser.parse_args()
    unknown = set(options.only) - set(PARTS)
    if unknown:
        parser.error(f"--only: given {', '.join(sorted(unknown))}; accepted: {', '.join(PARTS)}")
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    measure(options, found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    # numbers as they come back from the file, so that both ways to get here say the same
    found = json.loads(options.out.read_text())
    missing = WANTED - found.keys()
    if missing:
        parser.exit(message=f"{options.out} lacks {', '.join(sorted(missing))}: measure the rest, too, for bars\n")
    finish(Path("docs/storage.md"), table(found), bars(found))


if __name__ == "__main__":
    main()
