"""The bundle: a directory that holds a model's graphs, text embeddings, probe and certificate.

``manifest.json`` describes every other file with its sha256, so the hash of the manifest stands for the whole
bundle. ``certificate.json`` and ``engines/`` are not in it: they are made again on each device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadrun.errors import UserError
from vadrun.files import sha256
from vadrun.preprocessing import Preprocessing
from vadrun.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
MANIFEST = "manifest.json"
CERTIFICATE = "certificate.json"
ANOMALY_BRANCHES = ("confidence", "alignment")


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
    annotation_names: tuple[str, ...] = ()  # what annotation files call the classes; empty: as the labels

    def __post_init__(self) -> None:
        if self.anomaly not in ANOMALY_BRANCHES:
            raise ValueError(f"anomaly is {self.anomaly!r}, not one of {', '.join(ANOMALY_BRANCHES)}")
        if len(self.labels) < 2:
            raise ValueError("fewer than two labels")
        if self.annotation_names and not len(set(self.annotation_names)) == len(self.annotation_names) == len(
            self.labels
        ):
            raise ValueError("annotation_names is not one name for each label")


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
        try:
            model = dict(manifest["model"])
            model["labels"] = tuple(model["labels"])
            model["annotation_names"] = tuple(model.get("annotation_names", ()))
            info = ModelInfo(**model)
            files = tuple(BundleFile(name=name, **entry) for name, entry in manifest["files"].items())
            preprocessing = Preprocessing.from_manifest(manifest["preprocessing"])
            sampling = Sampling.from_manifest(manifest["sampling"])
        except KeyError as error:
            raise UserError(f"{root / MANIFEST} has no entry {error}: build the bundle again") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{root / MANIFEST} does not read: {error}; build the bundle again") from error
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

        path = self.path("text")
        try:
            text = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} does not read as an array: {error}; build the bundle again") from error
        expected = (len(self.model.labels), self.model.features)
        if text.shape != expected:
            raise UserError(
                f"{path} is {list(text.shape)}, but {expected[0]} labels of width {expected[1]} are expected: "
                "build the bundle again"
            )
        return np.ascontiguousarray(text, dtype=np.float32)

    def certificate(self) -> dict[str, Any] | None:
        """The certificate, or None where there is none yet."""
        path = self.root / CERTIFICATE
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            known = all(
                isinstance(run["machine"], dict)
                and isinstance(run["libraries"], list)
                and {"date", "passed"} <= set(run)
                for run in value["runs"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not read ({error}): run vadexport verify {self.root}") from error
        if not known:
            raise UserError(f"{path} is not a certificate: run vadexport verify {self.root}")
        return dict(value)

    def _check_files(self) -> None:
        for role in ("encoder", "head", "text", "probe"):
            self.file(role)
        for entry in self.files:
            path = self.root / entry.name
            if path.parent != self.root:
                raise UserError(f"{self.root / MANIFEST} names a file outside the bundle, {entry.name!r}")
            if not path.is_file():
                raise UserError(f"{path} is missing: copy the whole bundle again or build it again")
            if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
                raise UserError(
                    f"{path} is not the file that was built (its sha256 differs): copy the bundle again or "
                    "build it again"
                )


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
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (root / MANIFEST).write_text(text, encoding="utf-8")


def _read_manifest(root: Path) -> tuple[bytes, dict[str, Any]]:
    path = root / MANIFEST
    if not root.exists():
        raise UserError(f"{root} does not exist: build a bundle there with vadexport build --out {root}")
    if not path.is_file():
        raise UserError(f"{root} is not a bundle (no {MANIFEST} in it): build one with vadexport build")
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read as JSON: {error}; copy or build the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise UserError(f"{path} is not a bundle's manifest (no schema number): build one with vadexport build")
    if schema > SCHEMA:
        raise UserError(
            f"{root} was made by a newer vadclip-edge (schema {schema}, this one reads up to {SCHEMA}): "
            "update vadclip-edge on this machine"
        )
    return raw, manifest
