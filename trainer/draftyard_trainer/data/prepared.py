"""Prepared documents on disk: raw little-endian arrays that are appended while writing and mapped while reading.

tokens.bin       u32, the tokens of all documents, one after another
spans.bin        u32 pairs (start, length), the supervised spans of all documents, one after another
index.bin        one `INDEX` record per document, in the order of the rows they came from
vocabulary.bin   one `VOCABULARY` record per member of the draft vocabulary, ascending by id
MANIFEST.json    PreparedManifest, sealed, last
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, prepared_path
from draftyard_api.reasons import Reason
from draftyard_trainer.data.document import Document, Ids, Mask
from draftyard_trainer.data.manifest import PreparedManifest
from draftyard_trainer.data.vocabulary import DraftVocabulary
from draftyard_trainer.storage.sealed import seal, unseal
from draftyard_trainer.storage.store import Store

if TYPE_CHECKING:
    # it loads transformers, which readers do without
    from draftyard_trainer.data.tokens import Tokenised

TOKENS, SPANS, INDEX, VOCABULARY = "tokens.bin", "spans.bin", "index.bin", "vocabulary.bin"
TOKEN_DTYPE = np.dtype("<u4")
SPAN_DTYPE = np.dtype((TOKEN_DTYPE, (2,)))
# packed, 36 bytes: 1 M documents take 36 MB, which is what a process holds of them
INDEX_DTYPE = np.dtype(
    [
        ("row", "<u8"),
        ("first_token", "<u8"),
        ("first_span", "<u8"),
        ("num_tokens", "<u4"),
        ("num_spans", "<u4"),
        ("held_out", "<u4"),
    ]
)
"""`row` counts from 0 in the source; with splitTurns several documents share it."""
# u32 holds every id of every known vocabulary (262,208 at most); counts can pass 2^32 in a large corpus
VOCABULARY_DTYPE = np.dtype([("id", "<u4"), ("count", "<u8")])


class PreparedWriter:
    """Appends documents to a folder that nobody else sees yet; memory does not grow with their number."""

    def __init__(self, folder: Path, target_vocab_size: int) -> None:
        self.folder = folder
        self.documents = self.held_out_documents = 0
        self.tokens = self.train_tokens = self.loss_tokens = self.label_rows = 0
        self.train_counts: Ids = np.zeros(target_vocab_size, dtype=np.int64)
        """`[V]`: how often each id is supervised in training documents."""
        self._spans = 0
        self._digest = hashlib.sha256()
        self._file_digests = {name: hashlib.sha256() for name in (TOKENS, SPANS, INDEX)}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._files = {name: self._open(name) for name in self._file_digests}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, name: str) -> BinaryIO:
        # 1 MiB buffers: three small writes per document would be three system calls
        return self._stack.enter_context((self.folder / name).open("wb", buffering=1 << 20))

    def add(self, row: int, tokenised: Tokenised, held_out: bool) -> None:
        """Append one document with its split; its id is the number of documents before it."""
        document = Document(self.documents, tokenised.tokens, tokenised.spans)
        record = np.zeros(1, dtype=INDEX_DTYPE)
        num_tokens, num_spans = document.num_tokens, len(document.spans)
        record[0] = (row, self.tokens, self._spans, num_tokens, num_spans, held_out)
        tokens, spans = document.tokens.astype(TOKEN_DTYPE).tobytes(), document.spans.astype(TOKEN_DTYPE).tobytes()
        for name, data in ((INDEX, record.tobytes()), (TOKENS, tokens), (SPANS, spans)):
            self._files[name].write(data)
            self._file_digests[name].update(data)
        self._digest.update(hashed(record[0], tokens, spans))
        self._count(document, held_out)

    def _count(self, document: Document, held_out: bool) -> None:
        supervised = document.tokens[document.mask()]
        self.documents += 1
        self.held_out_documents += held_out
        self.tokens += document.num_tokens
        self._spans += len(document.spans)
        self.loss_tokens += len(supervised)
        self.label_rows += len(document.label_rows())
        if not held_out:
            self.train_tokens += document.num_tokens
            # held-out answers must not choose the vocabulary that they are judged with
            np.add.at(self.train_counts, supervised, 1)

    def tokens_sha256(self) -> str:
        """Hash of all documents so far: tokens, spans and split."""
        return self._digest.hexdigest()

    def files_sha256(self) -> dict[str, str]:
        """Hash of each file so far, by its name."""
        return {name: digest.hexdigest() for name, digest in self._file_digests.items()}

    def write_vocabulary(self, vocabulary: DraftVocabulary) -> str:
        """Write the draft vocabulary. Returns the file's sha256."""
        records = np.zeros(vocabulary.size, dtype=VOCABULARY_DTYPE)
        records["id"], records["count"] = vocabulary.ids, vocabulary.counts
        (self.folder / VOCABULARY).write_bytes(records.tobytes())
        return hashlib.sha256(records.tobytes()).hexdigest()


def sealed(manifest: PreparedManifest) -> bytes:
    """The content of MANIFEST.json."""
    return seal(manifest.model_dump_json(by_alias=True, indent=2).encode())


def hashed(record: np.void, tokens: bytes, spans: bytes) -> bytes:
    """What of one document goes into the hash: lengths and split first, so that no two data sets give one stream."""
    head = [record["num_tokens"], record["num_spans"], record["held_out"]]
    return np.array(head, dtype=TOKEN_DTYPE).tobytes() + tokens + spans


class PreparedDataset:
    """Prepared documents, read where they lie: `document` copies one, nothing else is loaded."""

    def __init__(self, manifest: PreparedManifest, index: npt.NDArray[np.void], vocabulary: DraftVocabulary) -> None:
        self.manifest = manifest
        self.vocabulary = vocabulary
        self.lengths: Ids = index["num_tokens"].astype(np.int64)
        """`[N]`: tokens of each document."""
        self.held_out: Mask = index["held_out"].astype(np.bool_)
        """`[N]`: true for documents of the held-out split."""
        self._index = index
        self._tokens: npt.NDArray[Any] = np.zeros(0, dtype=TOKEN_DTYPE)
        self._spans: npt.NDArray[Any] = np.zeros(0, dtype=SPAN_DTYPE)

    @classmethod
    def open(cls, store: Store, prepared: str) -> PreparedDataset:
        """Open `prepare/<prepared>`: sizes, index and vocabulary are checked, tokens and spans are not read.

        Raises Failure(STALE_INPUT) if it is gone, broken, cut short or of another version.
        """
        manifest = read_manifest(store, prepared)
        if manifest is None:
            raise stale(prepared, f"{MANIFEST} is missing or of another version")
        folder = prepared_path(prepared)
        index = mapped(store, f"{folder}/{INDEX}", INDEX_DTYPE)
        if len(index) != manifest.counts.documents:
            raise stale(prepared, f"{INDEX} has {len(index)} documents, not {manifest.counts.documents}")
        if hashlib.sha256(index.data).hexdigest() != manifest.files_sha256.get(INDEX):
            raise stale(prepared, f"{INDEX} is not what the manifest names")
        members = mapped(store, f"{folder}/{VOCABULARY}", VOCABULARY_DTYPE)
        if hashlib.sha256(members.tobytes()).hexdigest() != manifest.vocabulary_sha256:
            raise stale(prepared, f"{VOCABULARY} is not what the manifest names")
        ids, counts = members["id"].astype(np.int64), members["count"].astype(np.int64)
        dataset = cls(manifest, np.array(index), DraftVocabulary(ids, counts, manifest.key.target_vocab_size))
        dataset._tokens = mapped(store, f"{folder}/{TOKENS}", TOKEN_DTYPE)
        dataset._spans = mapped(store, f"{folder}/{SPANS}", SPAN_DTYPE)
        if len(dataset._tokens) != manifest.counts.tokens or len(dataset._spans) != int(index["num_spans"].sum()):
            raise stale(prepared, f"{TOKENS} or {SPANS} is cut short")
        return dataset

    @classmethod
    def open_checked(cls, store: Store, prepared: str) -> PreparedDataset:
        """Open and read all of it once, as those do that spend hours on it. Raises Failure(STALE_INPUT)."""
        dataset = cls.open(store, prepared)
        dataset.check_content(prepared)
        return dataset

    def check_content(self, prepared: str) -> None:
        """Raises Failure(STALE_INPUT) unless tokens and spans are those that were written."""
        # by file, not by document as `tokens_sha256`: Python takes longer over a document than sha256 does
        for name, content in ((TOKENS, self._tokens), (SPANS, self._spans)):
            if hashlib.sha256(content.data).hexdigest() != self.manifest.files_sha256.get(name):
                raise stale(prepared, f"{name} is not what the manifest names")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def train_ids(self) -> Ids:
        """Ids of the training documents, ascending."""
        return np.flatnonzero(~self.held_out).astype(np.int64)

    @property
    def held_out_ids(self) -> Ids:
        """Ids of the held-out documents, ascending."""
        return np.flatnonzero(self.held_out).astype(np.int64)

    @property
    def rows(self) -> Ids:
        """`[N]`: the row of the source, from 0, that each document came from."""
        return self._index["row"].astype(np.int64)

    def document(self, doc_id: int) -> Document:
        """One document, in memory of its own. Raises IndexError."""
        tokens, spans = self._slices(doc_id)
        return Document(doc_id, tokens.astype(np.int64), spans.astype(np.int64))

    def tokens_sha256(self) -> str:
        """Hash of what is on disk, to compare with the manifest's; reads everything once."""
        digest = hashlib.sha256()
        for doc_id, record in enumerate(self._index):
            tokens, spans = self._slices(doc_id)
            digest.update(hashed(record, tokens.tobytes(), spans.tobytes()))
        return digest.hexdigest()

    def _slices(self, doc_id: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Tokens and spans of one document, as they lie on disk."""
        record = self._index[doc_id]
        token, span = int(record["first_token"]), int(record["first_span"])
        tokens = self._tokens[token : token + int(record["num_tokens"])]
        return tokens, self._spans[span : span + int(record["num_spans"])]

    def prompt(self, doc_id: int) -> Ids:
        """The tokens before the first supervised one: exactly what a server reads before it answers."""
        document = self.document(doc_id)
        return document.tokens[: int(document.spans[0, 0])]


def read_manifest(store: Store, prepared: str) -> PreparedManifest | None:
    """The manifest of a finished folder; None when there is none that this version can read."""
    name = f"{prepared_path(prepared)}/{MANIFEST}"
    if not store.exists(name):
        return None
    try:
        return PreparedManifest.model_validate_json(unseal(store.read(name)))
    # also pydantic's
    except ValueError:
        return None


def mapped(store: Store, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A file as a read-only array; empty files cannot be mapped. Raises Failure(STALE_INPUT) if it is gone."""
    if not store.exists(name):
        raise stale(name, "the file is missing")
    path = store.fetch(name)
    # a mapping of 0 bytes is an error of the operating system
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise stale(name, f"{size} bytes are no whole number of records")
    return np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype=dtype)


def stale(what: str, why: str) -> Failure:
    """Prepared documents that cannot be used: the stage that makes them runs again."""
    return Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, f"prepare/{what}: {why}; prepare has to run again")
