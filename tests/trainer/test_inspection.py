"""`draftyard inspect` and `draftyard verify`: what lies in a workspace, and whether every byte of it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import MANIFEST, Stage, shard_path
from draftyard_api.spec import Target
from draftyard_api.task import GenerateTask
from draftyard_trainer import commands, inventory, testing
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.generate import generate_in
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE
from draftyard_trainer.hidden_states.shard import INDEX
from draftyard_trainer.hidden_states.testing import PREPARED, prepare_documents, tiny_document
from draftyard_trainer.inspection import SUPERVISED, coloured
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore

torch.set_num_threads(1)
LENGTHS = (30, 12, 41, 9, 25, 18, 33, 50, 7, 22)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def store(tmp_path: Path, target: Path) -> LocalStore:
    """One prepared data set, and two of three shards of its states."""
    store = LocalStore(tmp_path)
    prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    for shard in (0, 2):
        task = GenerateTask(
            run="tiny", uid="u", workspace=store.uri, target=Target(model=f"file://{target}"), prepared=PREPARED,
            aux_layers=(2, 4, 5), codec="balanced", num_shards=3, shard=shard,
        )  # fmt: skip
        generate_in(store, task, Reporter(Stage.GENERATE), 4000)
    return store


def folder_of(store: LocalStore, number: int = 0) -> str:
    (cache,) = inventory.caches(store)
    return shard_path(cache.key, cache.num_shards, number)


def parts_of(store: LocalStore) -> list[str]:
    (cache,) = inventory.caches(store)
    return [f"{folder_of(store)}/{part.file}" for part in cache.complete[0].parts]


def flip(store: LocalStore, name: str, place: int) -> None:
    content = bytearray(store.read(name))
    content[place] ^= 1
    store.publish(name, bytes(content))


# -- Looking ------------------------------------------------------------------------------------------


def test_what_is_stored_is_shown(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.inspect([str(store.root)]) == ExitCode.OK
    said = capsys.readouterr().out
    (cache,) = inventory.caches(store)
    for words in (
        f"prepare/{PREPARED}", "10 from 10 rows, 2 held out", f"hidden-states/{cache.key}/s3", "2 of 3 complete",
        "layers 2, 4, 5, bfloat16", "used by          tiny", f"tokens of        prepare/{PREPARED}",
        "of the most likely tokens stay",
    ):  # fmt: skip
        assert words in said
    share = float(said.split("balanced, ")[1].split("%")[0]) / 100
    stored = sum(len(store.read(name)) for name in store.list("hidden-states") if "/part-" in name and "bin" in name)
    raw = sum(2 * (3 * shard.tokens + shard.label_rows) * cache.width for shard in cache.complete)
    assert share == pytest.approx(stored / raw, abs=1e-3)


def test_nothing_is_shown_of_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.inspect([str(tmp_path)]) == ExitCode.OK
    assert "nothing is stored here yet" in capsys.readouterr().out


def test_a_document_is_shown_with_its_mask(store: LocalStore, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(store.root), "--document", "0", "--tokenizer", str(target)]
    assert commands.inspect(arguments) == ExitCode.OK
    assert "document 0 of 10 (training): 30 tokens, 19 supervised in 1 spans" in capsys.readouterr().out
    tokenizer = load_tokenizer(target, "tiny", trust_remote_code=False)
    document = Document(0, np.array(tokenizer.encode("one two three four")), np.array([[2, 2]]))
    text = coloured(document, tokenizer)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == SUPERVISED)
    assert green == tokenizer.decode(document.tokens[2:4].tolist())
    assert text.plain.startswith(tokenizer.decode(document.tokens[:2].tolist()))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--document", "10"], "--document: given 10; accepted: 0 to 9", id="no such document"),
        pytest.param(["--document", "0"], "--tokenizer: given none; accepted: the folder", id="no tokenizer"),
        pytest.param(["--document", "0", "--prepared", "gone"], "prepare/gone", id="no such folder"),
    ],
)
def test_what_cannot_be_shown(
    store: LocalStore, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert commands.inspect([str(store.root), *options]) in (ExitCode.BAD_TASK, ExitCode.STALE_INPUT)
    assert says in capsys.readouterr().err


# -- Verifying ----------------------------------------------------------------------------------------


def test_a_whole_workspace_passes(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.verify([str(store.root)]) == ExitCode.OK
    said = capsys.readouterr().err
    assert "all as their manifests say" in said
    assert "/s3: 2 of 3 shards are complete" in said


def break_record(store: LocalStore) -> None:
    flip(store, parts_of(store)[1], 100)


def break_padding(store: LocalStore) -> None:
    """Between two records: no checksum of a record covers it."""
    index = np.frombuffer(
        store.read(f"{folder_of(store)}/{INDEX}"), dtype=[("x", "V12"), ("at", "<u8"), ("n", "<u8"), ("y", "V8")]
    )
    row = next(row for row in index if int(row["n"]) % 64)
    flip(store, parts_of(store)[0], int(row["at"]) + int(row["n"]))


def break_index(store: LocalStore) -> None:
    flip(store, f"{folder_of(store)}/{INDEX}", 3)


def break_calibration(store: LocalStore) -> None:
    flip(store, f"{folder_of(store)}/{CALIBRATION_FILE}", -1)


def break_tokens(store: LocalStore) -> None:
    flip(store, f"prepare/{PREPARED}/tokens.bin", 8)


def delete_part(store: LocalStore) -> None:
    store.delete(parts_of(store)[0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_record, "1 broken records"),
        (break_padding, "does not have the bytes that were written"),
        (break_index, "index.bin is missing, or not what the manifest names"),
        (break_calibration, "calibration.safetensors is missing, or not"),
        (break_tokens, "does not have the tokens or masks that were written"),
        (delete_part, "broken records"),
    ],
)
def test_every_kind_of_damage_is_found(
    store: LocalStore, capsys: pytest.CaptureFixture[str], damage: Callable[[LocalStore], None], says: str
) -> None:
    damage(store)
    assert commands.verify([str(store.root)]) == ExitCode.STALE_INPUT
    assert says in capsys.readouterr().err
    # looking changes nothing
    assert store.exists(f"{folder_of(store)}/{MANIFEST}")


def test_what_is_taken_back_is_made_again(store: LocalStore) -> None:
    break_record(store)
    name = f"{folder_of(store)}/part-001.json"
    assert commands.verify([str(store.root), "--take-back"]) == ExitCode.STALE_INPUT
    assert not store.exists(f"{folder_of(store)}/{MANIFEST}")
    assert not store.exists(name)
    assert store.exists(name.replace("001", "000"))


def test_sizes_of_channels_that_rot_are_not_used_again(store: LocalStore) -> None:
    """They would still be numbers: whatever is divided by them next would be wrong."""
    whole = store.read(f"{folder_of(store)}/{CALIBRATION_FILE}")
    break_calibration(store)
    assert commands.verify([str(store.root)]) == ExitCode.STALE_INPUT
    assert store.exists(f"{folder_of(store)}/{CALIBRATION_FILE}")
    assert commands.verify([str(store.root), "--take-back"]) == ExitCode.STALE_INPUT
    assert not store.exists(f"{folder_of(store)}/{CALIBRATION_FILE}")
    assert not store.exists(f"{folder_of(store)}/{MANIFEST}")
    assert store.exists(f"{folder_of(store)}/part-000.json")
    (cache,) = inventory.caches(store)
    assert store.read(f"hidden-states/{cache.key}/s3/{CALIBRATION_FILE}") == whole


def test_a_workspace_that_cannot_be_opened(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.verify(["s3://bucket/prefix"]) != ExitCode.OK
    assert "workspace" in capsys.readouterr().err
