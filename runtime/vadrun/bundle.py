"""The bundle: a directory that holds a model's graphs, text embeddings, probe and certificate.

``manifest.json`` describes every other file with its sha256, so the hash of the manifest stands for the whole
bundle. ``certificate.json`` and ``engines/`` are not in it: they are made again on each device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadrun.errors import UserError
from vadrun.files import sha256, write_json
from vadrun.graphfiles import GraphError, outside_files
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling
from vadrun.schema import (
    SHA256,
    Anything,
    FileName,
    Flag,
    List,
    Maybe,
    Number,
    Record,
    Table,
    Text,
    Where,
    Whole,
    load_json,
    parse_json,
    read_file,
    shown,
    validate,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
MANIFEST = "manifest.json"
CERTIFICATE = "certificate.json"
ANOMALY_BRANCHES = ("confidence", "alignment")
ROLES = ("encoder", "head", "text", "probe")
PRECISIONS = ("fp32", "fp16", "int8")  # of stored graphs

_AGAIN = "copy the bundle again or build it again"

_MODEL = Record(
    {
        "dataset": Maybe(Text(1, 200)),
        "labels": List(Text(1, 200), 2, 10_000, unique=True),
        "anomaly": Text(among=ANOMALY_BRANCHES),
        "features": Whole(1, 65_536),
        "positions": Whole(1, 65_536),
        "window": Whole(1, 65_536),
        "layers": Whole(1, 1_000),
        "heads": Whole(1, 1_000),
        "mask_padding": Flag(),
        "image_size": Whole(1, 4_096),
        "patch_size": Whole(1, 4_096),
    }
)
_FILE = Record(
    {
        "role": Text(among=ROLES),
        "precision": Maybe(Text(among=PRECISIONS)),
        "sha256": SHA256,
        "bytes": Whole(),
    },
    optional={"backend": Text(1, 100)},
)
_INT8 = Record(
    {
        "method": Text(),
        "ranges": Record({"frames": Whole()}, others=Anything()),
        "kept": List(Text()),
        "cosine": List(Number(-1.001, 1.001), 2, 2),
    },
    others=Anything(),
)
_GRAPH = Record(
    {"opset": Whole(), "nodes": Whole(), "kinds": Table(Whole())},
    optional={"weights": FileName(), "int8": _INT8},
    others=Anything(),
)
_MANIFEST = Record(
    {
        "schema": Whole(1),
        "toolkit": Text(),
        "model": _MODEL,
        "preprocessing": Table(Anything()),
        "sampling": Table(Anything()),
        "files": Table(_FILE, key=FileName(), most=64),
        "graphs": Table(_GRAPH, key=FileName()),
        "checkpoint": Record({"name": Text(), "sha256": SHA256}, others=Anything()),
    },
    optional={"relabelled": Record({"prompts": Table(Text())}, others=Anything())},
    others=Anything(),
)
_CERTIFICATE = Record(
    {
        "bundle": SHA256,
        "runs": List(
            Record(
                {
                    "date": Text(),
                    "passed": Flag(),
                    "machine": Table(Text()),
                    "libraries": List(Text()),
                },
                optional={"changes": Table(Number(0))},
                others=Anything(),
            )
        ),
    },
    optional={"stale": Text()},
    others=Anything(),
)


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: its name, what it is for, its precision (graphs only), hash and size.

    ``backend`` names the one backend that a form of a graph is for; None: any.
    """

    name: str
    role: str  # "encoder", "head", "text" or "probe"
    precision: str | None
    sha256: str
    bytes: int
    backend: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What the runtime must know of the model."""

    dataset: str | None
    labels: tuple[str, ...]  # m names, normal first
    anomaly: str  # the branch that gives the anomaly score: "confidence" or "alignment"
    features: int  # d
    positions: int  # T, snippets that the head sees at once
    window: int
    layers: int
    heads: int
    mask_padding: bool
    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        if self.anomaly not in ANOMALY_BRANCHES:
            raise ValueError(f"anomaly is {self.anomaly!r}, not one of {', '.join(ANOMALY_BRANCHES)}")
        if len(self.labels) < 2:
            raise ValueError("fewer than two labels")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Use :meth:`open`."""

    root: Path
    manifest: Mapping[str, Any]
    sha256: str  # of manifest.json
    model: ModelInfo
    preprocessing: Preprocessing
    sampling: Sampling
    files: tuple[BundleFile, ...]

    @classmethod
    def open(cls, root: str | Path) -> Bundle:
        """Read a bundle and check every file in it against the manifest.

        Raises:
            UserError: not a bundle, made by a newer toolkit, incomplete, or changed since it was built.
        """
        root = Path(root)
        raw, manifest = _read_manifest(root)
        info = ModelInfo(**{**manifest["model"], "labels": tuple(manifest["model"]["labels"])})
        files = tuple(BundleFile(name=name, **entry) for name, entry in manifest["files"].items())
        try:
            preprocessing = Preprocessing.from_manifest(manifest["preprocessing"])
            sampling = Sampling.from_manifest(manifest["sampling"])
        except UserError as error:
            raise UserError(f"{root / MANIFEST}: {error}: build the bundle again") from error
        bundle = cls(root, manifest, hashlib.sha256(raw).hexdigest(), info, preprocessing, sampling, files)
        bundle._check_files()
        return bundle

    def file(self, role: str, precision: str | None = None, backend: str | None = None) -> BundleFile:
        """The file with this role (and precision, if one is named), in the form for ``backend`` where there is one."""
        found = [
            entry
            for entry in self.files
            if entry.role == role and precision in (None, entry.precision) and entry.backend in (None, backend)
        ]
        if found:
            return max(found, key=lambda entry: entry.backend is not None)
        wanted = role if precision is None else f"{precision} {role}"
        raise UserError(f"{self.root} holds no {wanted}: build the bundle again with that precision")

    def path(self, role: str, precision: str | None = None) -> Path:
        """Where the file with this role lies."""
        return self.root / self.file(role, precision).name

    @property
    def encoder_precisions(self) -> tuple[str, ...]:
        """The precisions in which the bundle holds the encoder."""
        return tuple(dict.fromkeys(entry.precision or "fp32" for entry in self.files if entry.role == "encoder"))

    def text(self) -> NDArray[np.float32]:
        """The class embeddings, float32 [m,d].

        Raises:
            UserError: the file does not fit the labels or the model's width.
        """
        import numpy as np

        from vadrun.arrays import Array, load_npy  # numpy is not needed to look at a bundle

        wanted = Array("f", (len(self.model.labels), self.model.features))
        return np.ascontiguousarray(load_npy(self.path("text"), wanted, "build the bundle again"), dtype=np.float32)

    def certificate(self) -> dict[str, Any] | None:
        """The certificate, or None where there is none yet.

        Raises:
            UserError: it does not read, or is something else.
        """
        return read_certificate(self.root)

    def certificate_remark(self) -> str | None:
        """What a run should say of the certificate: that it does not read, or is of another bundle; None: nothing.

        A certificate that says less than it seems to does not stop a run: the start-up test holds the graphs against
        the probe anyway.
        """
        try:
            found = self.certificate()
        except UserError as error:
            return str(error)
        if found is None or (found["bundle"] == self.sha256 and "stale" not in found):
            return None
        why = "the bundle has been relabelled since" if "stale" in found else "it is of another bundle"
        return f"{self.root / CERTIFICATE} does not hold for this bundle ({why}): run vadexport verify {self.root}"

    def _check_files(self) -> None:
        for role in ROLES:
            self.file(role)
        for entry in self.files:
            path = self.root / entry.name
            if path.is_symlink():
                raise UserError(f"{path} is a link: copy what it leads to in its place (cp -L)")
            if not path.is_file():
                raise UserError(f"{path} is missing: copy the whole bundle again or build it again")
            if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
                raise UserError(f"{path} is not the file that was built (its sha256 differs): {_AGAIN}")
        names = {entry.name for entry in self.files}
        for entry in self.files:
            if entry.role in ("encoder", "head"):
                self._check_graph(self.root / entry.name, names)

    def _check_graph(self, path: Path, names: set[str]) -> None:
        """A graph may keep its weights in another file: only in one that the manifest lists with its hash."""
        try:
            outside = outside_files(path)
        except GraphError as error:
            raise UserError(f"{path} is not an ONNX graph ({error}): {_AGAIN}") from error
        for name in sorted(outside - names):
            raise UserError(
                f"{path} takes weights from {name[:80]!r}, a file that {MANIFEST} does not list: build the bundle again"
            )


def read_certificate(root: Path) -> dict[str, Any] | None:
    """The certificate of a bundle, or None where there is none yet.

    Raises:
        UserError: it does not read, or is something else.
    """
    path = root / CERTIFICATE
    if not os.path.lexists(path):
        return None
    return dict(load_json(path, _CERTIFICATE, f"run vadexport verify {root}"))


def write_manifest(
    root: Path,
    *,
    toolkit: str,
    model: ModelInfo,
    preprocessing: Preprocessing,
    sampling: Sampling,
    files: Mapping[str, tuple[str, str | None]],
    checkpoint: Mapping[str, Any],
    graphs: Mapping[str, Any],
    forms: Mapping[str, str] | None = None,
) -> None:
    """Write ``manifest.json`` for the files that lie in ``root``: name -> (role, precision).

    ``forms`` are those for one backend alone: name -> backend.
    """
    forms = forms or {}
    entries = {
        name: {
            "role": role,
            "precision": precision,
            "sha256": sha256(root / name),
            "bytes": (root / name).stat().st_size,
            **({"backend": forms[name]} if name in forms else {}),
        }
        for name, (role, precision) in files.items()
    }
    manifest = {
        "schema": SCHEMA,
        "toolkit": toolkit,
        "model": asdict(model),
        "preprocessing": preprocessing.to_manifest(),
        "sampling": sampling.to_manifest(),
        "files": entries,
        "graphs": dict(graphs),
        "checkpoint": dict(checkpoint),
    }
    write_json(root / MANIFEST, manifest)


def _read_manifest(root: Path) -> tuple[bytes, dict[str, Any]]:
    path = root / MANIFEST
    if not root.exists():
        raise UserError(f"{root} does not exist: build a bundle there with vadexport build --out {root}")
    if not os.path.lexists(path):
        raise UserError(f"{root} is not a bundle (no {MANIFEST} in it): build one with vadexport build")
    if path.is_symlink():
        raise UserError(f"{path} is a link: copy what it leads to in its place (cp -L)")
    where = Where(path, _AGAIN)
    raw = read_file(path, where)
    manifest = parse_json(raw, where)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int:
        raise UserError(f"{path} is not a bundle's manifest (no schema number): build one with vadexport build")
    if schema > SCHEMA:
        raise UserError(
            f"{root} was made by a newer vadclip-edge (schema {shown(schema)}, this one reads up to {SCHEMA}): "
            "update vadclip-edge on this machine"
        )
    return raw, validate(manifest, _MANIFEST, where)
