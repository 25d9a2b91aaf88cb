"""Other classes for a bundle that exists: new text embeddings, and no graph or engine touched.

With ``--text`` neither PyTorch nor the checkpoint is needed: embeddings that were made elsewhere (the ``text.npy`` of a
bundle that was relabelled there) are put in.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadclip.presets import check_labels, load_labels
from vadexport.probe import Probe
from vadrun.arrays import Array, load_npy
from vadrun.bundle import CERTIFICATE, MANIFEST, Bundle
from vadrun.console import version
from vadrun.errors import UserError
from vadrun.files import sha256, whole_directory, write_json
from vadrun.plans import PlanError, PlanSet, plan_folders, profile_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ClassName:
    """A class as events name it, and the words that the text encoder reads for it."""

    label: str
    words: str


@dataclass(frozen=True)
class Relabelled:
    """What has become of the classes, and of what was made for the old ones."""

    labels: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    engines: int
    had_certificate: bool

    def report(self, bundle: Path) -> str:
        """For people."""
        changes = [
            f"{what} {', '.join(names)}" for what, names in (("added", self.added), ("dropped", self.dropped)) if names
        ]
        lines = [f"{len(self.labels)} classes: {', '.join(self.labels)} ({'; '.join(changes) or 'same names'})"]
        if self.engines:
            lines.append(f"{self.engines} engine{'s stay' if self.engines > 1 else ' stays'} as built")
        if self.had_certificate:
            lines.append(f"the certificate is of the bundle before: run vadexport verify {bundle}")
        lines.append("calibrations made for the bundle before are refused now: run vadcalibrate alarms")
        return "\n".join(lines)


def read_classes(path: Path) -> list[ClassName]:
    """Read a labels file: one class a line, the normal one first, ``label`` or ``label: words of the prompt``.

    Without words of its own a label is its own prompt. Words stand where the label would, between the learned vectors
    (Eq. 5); blank lines and comments are as in :func:`vadclip.presets.load_labels`.

    Raises:
        UserError: the file cannot be read, a label or a prompt is empty, or a label is there twice.
    """
    found = []
    for line in load_labels(path):
        label, colon, words = (part.strip() for part in line.partition(":"))
        if colon and not (label and words):
            raise UserError(
                f"{path}: {line!r} has no {'prompt' if label else 'label'}: write label: words of the prompt"
            )
        found.append(ClassName(label, words or label))
    check_labels([entry.label for entry in found], source=str(path))
    return found


def relabel(
    root: Path,
    classes: Sequence[ClassName],
    *,
    checkpoint: Path | None = None,
    text: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Relabelled:
    """Give a bundle other classes, in place, whole or not at all.

    Args:
        root: the bundle.
        classes: the new ones, normal first.
        checkpoint: what the bundle was built from; its text encoder makes the embeddings, and PyTorch answers the probe
            again with them.
        text: or else embeddings float32 [m,d] as ``.npy``; the probe keeps its old classes, with which it checks the
            graphs as well.
        say: told at the beginning of each step.

    Raises:
        UserError: not a bundle, a checkpoint of another bundle, embeddings that do not fit, a prompt that is too long,
            or more classes than an engine was built for.
    """
    bundle = Bundle.open(root)
    labels = tuple(entry.label for entry in classes)
    old = bundle.model.labels
    if old[0] in labels[1:]:
        raise UserError(f"the normal class, {old[0]!r}, is not the first of the new labels: put it first")
    engines = _check_engines(bundle, len(labels))
    probe = None
    if checkpoint is not None:
        say(f"reading {checkpoint}")
        embeddings, probe, origin = _from_checkpoint(bundle, checkpoint, classes, say)
    elif text is not None:
        embeddings, origin = _from_file(bundle, text, len(labels)), {"name": text.name, "sha256": sha256(text)}
    else:
        raise ValueError("neither a checkpoint nor embeddings")

    manifest: dict[str, Any] = copy.deepcopy(dict(bundle.manifest))
    with whole_directory(root, replace=True) as folder:
        try:
            old_certificate = bundle.certificate()
        except UserError:
            old_certificate = None  # nothing that anyone can read is lost
        rewritten = {MANIFEST, CERTIFICATE, bundle.file("text").name} | (
            {bundle.file("probe").name} if probe is not None else set()
        )
        shutil.copytree(
            root, folder, dirs_exist_ok=True, copy_function=_link, ignore=_at_the_top(root, rewritten), symlinks=True
        )
        np.save(folder / bundle.file("text").name, embeddings, allow_pickle=False)
        if probe is not None:
            probe.save(folder / bundle.file("probe").name)
        if old_certificate is not None:
            write_json(folder / CERTIFICATE, old_certificate | {"stale": "relabelled since: run vadexport verify"})
        for name in rewritten - {MANIFEST, CERTIFICATE}:
            path = folder / name
            manifest["files"][name] |= {"sha256": sha256(path), "bytes": path.stat().st_size}
        manifest["model"]["labels"] = list(labels)
        manifest["relabelled"] = {
            "toolkit": version(),
            "from": origin,
            "prompts": {entry.label: entry.words for entry in classes},
        }
        write_json(folder / MANIFEST, manifest)
        Bundle.open(folder).text()
    return Relabelled(
        labels,
        tuple(label for label in labels if label not in old),
        tuple(label for label in old if label not in labels),
        engines,
        old_certificate is not None,
    )


def _from_checkpoint(
    bundle: Bundle, checkpoint: Path, classes: Sequence[ClassName], say: Callable[[str], None]
) -> tuple[Floats, Probe, dict[str, Any]]:
    try:
        from vadexport.original import original
        from vadexport.reference import answer, class_embeddings
    except ModuleNotFoundError as error:
        raise UserError(
            f"relabelling from a checkpoint needs {error.name}, which is not installed: pip install "
            "'vadclip-edge[export]', or give --text with embeddings that were made elsewhere"
        ) from error
    model = original(bundle, checkpoint)
    say(f"encoding {len(classes)} class prompts with PyTorch")
    embeddings = class_embeddings(model, [entry.words for entry in classes])
    frames = Probe.load(bundle.path("probe"), bundle.model).frames
    say(f"running {len(frames)} probe frames through PyTorch")
    return (
        embeddings,
        answer(model, frames, embeddings),
        {
            "name": checkpoint.name,
            "sha256": bundle.manifest["checkpoint"]["sha256"],
        },
    )


def _from_file(bundle: Bundle, path: Path, count: int) -> Floats:
    advice = f"give embeddings of these {count} labels of width {bundle.model.features}"
    found = load_npy(path, Array("f", (count, bundle.model.features)), advice)
    if not np.linalg.norm(found, axis=1).all():
        raise UserError(f"{path} has a class whose embedding is zero: make it again")
    return np.ascontiguousarray(found, dtype=np.float32)


def _check_engines(bundle: Bundle, count: int) -> int:
    """How many devices have engines; each head was built for up to so many classes."""
    folders = plan_folders(bundle)
    for folder in folders:
        try:
            most = profile_of(folder, PlanSet.read(folder).head, ["text"])["text"][1][0]
        except PlanError:
            continue  # the runtime passes over it, whatever its classes are
        if count > most:
            raise UserError(
                f"{count} classes are more than the {most} that the engine in {folder} was built for: remove that "
                "folder, and run vadexport compile again afterwards"
            )
    return len(folders)


def _at_the_top(root: Path, names: set[str]) -> Callable[[str, list[str]], set[str]]:
    return lambda folder, found: names & set(found) if Path(folder) == root else set()


def _link(source: str, target: str) -> None:
    """The same file under another name where the file system can do it: large files are not copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
