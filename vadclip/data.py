"""Feature files as batches: checked once, packed into one mapped file, read ahead of the training step.

16,000 small files cost more to open than to read. :func:`open_store` therefore reads each of them once, which is
the check for damage too, and writes their snippets one after another into one file that is then mapped.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vadclip.lists import FeatureList
from vadrun.errors import UserError
from vadrun.files import whole_directory, write_json
from vadrun.schema import List, Record, Text, Whole, load_json

Progress = Callable[[int, int], None]
"""Called with how many files are done, and of how many."""

_VERSION = 3
_READERS = 4  # threads that read files: they wait for the disk most of the time
_BLOCK = 256  # files that are read before they are written, which bounds memory
_AHEAD = 2  # batches that are made ready ahead

_T = TypeVar("_T")

Batch = tuple[Tensor, Tensor]
"""Features float32 [B,T,d] and lengths int64 [B]."""


def pool(features: NDArray[np.floating], positions: int) -> NDArray[np.floating]:
    """More than T snippets as T means of neighbours, with the bins of the released code; fewer as they are.

    Args:
        features: [n,d].
        positions: T.

    Returns:
        [min(n,T),d] of the same type; the means are computed in float32.
    """
    if len(features) <= positions:
        return features
    edges = np.linspace(0, len(features), positions + 1, dtype=np.int64)
    sums = np.add.reduceat(features.astype(np.float32, copy=False), edges[:-1], axis=0)
    means: NDArray[np.floating] = (sums / np.diff(edges)[:, None].astype(np.float32)).astype(features.dtype)
    return means


class FeatureStore(Protocol):
    """N feature files, pooled to at most T snippets each."""

    lengths: NDArray[np.int64]
    """[N], snippets after pooling."""
    digest: str
    """Hex SHA-256 of all features after pooling, as they were when they were checked."""

    def rows(self, index: int) -> NDArray[np.floating]:
        """Features [n,d] of one file, n at most T, float16 or float32."""


class FileStore:
    """Reads and pools the files themselves, every time; :func:`open_store` has checked them."""

    def __init__(
        self, listed: FeatureList, lengths: NDArray[np.int64], digest: str, width: int, positions: int
    ) -> None:
        self.lengths = lengths
        self.digest = digest
        self._listed = listed
        self._width = width
        self._positions = positions

    def rows(self, index: int) -> NDArray[np.floating]:
        """As in :class:`FeatureStore`.

        Raises:
            UserError: the file has changed since it was checked.
        """
        features = pool(self._listed.read(index, self._width), self._positions)
        if len(features) != self.lengths[index]:
            raise UserError(f"{self._listed.paths[index]} has changed during training: begin again")
        return features


class PackedStore:
    """All files' snippets in one mapped file: a folder with ``features.bin`` and ``index.json``."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.lengths = np.array(index["lengths"], dtype=np.int64)
        self.digest: str = index["digest"]
        self._width: int = index["width"]
        self._half = np.array(index["half"], dtype=bool)
        sizes = self.lengths * self._width * np.where(self._half, 2, 4)
        self._starts = np.concatenate(([0], np.cumsum(sizes)))
        self._bytes = np.memmap(folder / "features.bin", dtype=np.uint8, mode="r")

    def rows(self, index: int) -> NDArray[np.floating]:
        """As in :class:`FeatureStore`; a view of the mapped file."""
        part = self._bytes[self._starts[index] : self._starts[index + 1]]
        kind = np.float16 if self._half[index] else np.float32
        found: NDArray[np.floating] = part.view(np.ndarray).view(kind).reshape(-1, self._width)
        return found


def open_store(
    listed: FeatureList,
    width: int,
    positions: int,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> FeatureStore:
    """Check every file of a list and make its features quick to read.

    Args:
        listed: files that exist.
        width: d of the model.
        positions: T of the model.
        cache: folder for the packed copy, at most as large as the files; one that holds exactly these files as
            they are now is used again without reading them. None: check now, read the files every epoch.
        progress: told now and then.

    Raises:
        UserError: a file cannot be used, or the cache cannot be written.
    """
    key = _fingerprint(listed, width, positions)
    if cache is None:
        digest, lengths = hashlib.sha256(), []
        for features in _read_all(listed, width, positions, progress):
            _add(digest, features)
            lengths.append(len(features))
        return FileStore(listed, np.array(lengths, dtype=np.int64), digest.hexdigest(), width, positions)
    index = _index_of(cache, key, listed, width)
    if index is None:
        index = _pack(listed, width, positions, cache, key, progress)
    return PackedStore(cache, index)


class Fetcher:
    """Makes batches of rows, zero-padded on the right, in a few buffers that it uses again and again.

    Fresh memory for each batch would cost ten times the copying. A batch stays as it is until ``_AHEAD + 1`` more
    have been made, which is how :func:`ahead` uses it.

    Args:
        store: where the features are.
        positions: T.
        width: d.
    """

    def __init__(self, store: FeatureStore, positions: int, width: int) -> None:
        self._store = store
        self._shape = (positions, width)
        self._buffers: list[Tensor] = []
        self._made = 0

    def __call__(self, rows: NDArray[np.integer]) -> Batch:
        """Features float32 [B,T,d] and lengths int64 [B] of B rows, on the CPU."""
        place = self._made % (_AHEAD + 2)
        self._made += 1
        if len(self._buffers) == place:
            self._buffers.append(torch.empty(0))
        if len(self._buffers[place]) < len(rows):
            self._buffers[place] = torch.empty((len(rows), *self._shape))
        features = self._buffers[place][: len(rows)]
        lengths = torch.from_numpy(self._store.lengths[rows])
        # By NumPy, not torch: torch's threads would fight the training step's for the cores.
        for target, row in zip(features.numpy(), rows, strict=True):
            found = self._store.rows(int(row))
            target[: len(found)] = found
            target[len(found) :] = 0.0
        return features, lengths


def ahead(make: Callable[[_T], Batch], items: Iterable[_T]) -> Iterator[tuple[_T, Batch]]:
    """Each item with the batch that ``make`` gives of it, in order, made by a thread of its own a little ahead.

    The copying lets other threads run, so that reading costs the training step next to nothing.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="features") as pool_of_one:
        waiting: deque[tuple[_T, Future[Batch]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool_of_one.submit(make, item)))
                if len(waiting) > _AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def epoch_rows(normal: NDArray[np.bool_], batch: int, balanced: bool, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of one epoch, as indices; the same for the same arguments on every machine.

    Args:
        normal: bool [N].
        batch: rows in a batch; if ``balanced``, rows of each kind in it.
        balanced: normal rows first, then as many abnormal ones, each kind shuffled on its own; an epoch ends with
            the smaller kind, and what does not fill a batch is left out, as released for UCF-Crime. Otherwise
            rows of both kinds as they come, the last batch smaller, as released for XD-Violence.
        seed: of the run.
        epoch: counted from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    if not balanced:
        order = generator.permutation(len(normal))
        return [order[start : start + batch] for start in range(0, len(order), batch)]
    kinds = [generator.permutation(np.flatnonzero(normal == kind)) for kind in (True, False)]
    batch = min(batch, *(len(kind) for kind in kinds))  # a small list trains all the same
    count = min(len(kind) for kind in kinds) // batch if batch else 0
    parts = [np.split(kind[: count * batch], count) for kind in kinds] if count else [[], []]
    return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


def _fingerprint(listed: FeatureList, width: int, positions: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {width} {positions} {listed.within}\n".encode())
    for path in listed.paths:
        try:
            found = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): correct the list") from error
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


_INDEX = Record(
    {
        "key": Text(),
        "bytes": Whole(),
        "digest": Text(),
        "width": Whole(1),
        "lengths": List(Whole()),
        "half": List(Whole(0, 1)),
    }
)


def _index_of(cache: Path, key: str, listed: FeatureList, width: int) -> dict[str, Any] | None:
    """The index of a packed copy of just these files, if ``cache`` is one and whole."""
    try:
        index: dict[str, Any] = load_json(cache / "index.json", _INDEX, "pack the features again", most=256 << 20)
        size = (cache / "features.bin").stat().st_size
    except (OSError, UserError):
        return None
    lengths, half = index["lengths"], index["half"]
    whole = index["key"] == key and len(lengths) == len(half) == len(listed)
    rows = sum(length * (2 if kind else 4) for length, kind in zip(lengths, half, strict=False))
    return index if whole and index["bytes"] == size == rows * width else None


def _pack(
    listed: FeatureList, width: int, positions: int, cache: Path, key: str, progress: Progress | None
) -> dict[str, Any]:
    if cache.exists():
        held = {path.name for path in cache.iterdir()} if cache.is_dir() else {""}
        if held and ("index.json" not in held or held - {"index.json", "features.bin"}):
            raise UserError(f"{cache} is something else than packed features: name another place for the cache")
    digest, lengths, half = hashlib.sha256(), [], []
    try:
        with whole_directory(cache, replace=True) as folder:
            with (folder / "features.bin").open("wb") as stream:
                for features in _read_all(listed, width, positions, progress):
                    stream.write(features.data)
                    _add(digest, features)
                    lengths.append(len(features))
                    half.append(features.dtype == np.float16)
                size = stream.tell()
            index = {
                "key": key,
                "bytes": size,
                "digest": digest.hexdigest(),
                "width": width,
                "lengths": lengths,
                "half": [int(kind) for kind in half],
            }
            write_json(folder / "index.json", index)
    except OSError as error:
        raise UserError(
            f"{cache} cannot be written ({error.strerror}): name a cache with room for the features, or use none"
        ) from error
    return index


def _add(digest: hashlib._Hash, features: NDArray[np.floating]) -> None:
    digest.update(f"{features.dtype} {features.shape}".encode())
    digest.update(features.data)


def _read_all(
    listed: FeatureList, width: int, positions: int, progress: Progress | None
) -> Iterator[NDArray[np.floating]]:
    def read(index: int) -> NDArray[np.floating]:
        return pool(listed.read(index, width), positions)

    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="features") as readers:
        for start in range(0, len(listed), _BLOCK):
            yield from readers.map(read, range(len(listed))[start : start + _BLOCK])
            if progress is not None:
                progress(min(start + _BLOCK, len(listed)), len(listed))
