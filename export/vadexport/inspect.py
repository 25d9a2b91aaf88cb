"""What a bundle holds, for people and for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vadrun.bundle import Bundle
from vadrun.console import table


def describe(root: Path) -> dict[str, Any]:
    """The manifest, the bundle's hash and its certificate.

    Raises:
        UserError: not a whole, unchanged bundle.
    """
    bundle = Bundle.open(root)
    return {
        "path": str(root),
        "sha256": bundle.sha256,
        "manifest": dict(bundle.manifest),
        "certificate": bundle.certificate(),
    }


def report(description: dict[str, Any]) -> str:
    """The same as text."""
    manifest = description["manifest"]
    model = manifest["model"]
    image, sampling = manifest["preprocessing"], manifest["sampling"]
    checkpoint = manifest["checkpoint"]
    facts = [
        ("bundle", f"{description['path']}  (sha256 {description['sha256'][:12]})"),
        ("made by", f"vadclip-edge {manifest['toolkit']}, schema {manifest['schema']}"),
        ("checkpoint", f"{checkpoint['name']}  (sha256 {checkpoint['sha256'][:12]})"),
        (
            "model",
            f"dataset {model['dataset'] or '-'}, width {model['features']}, {model['layers']} temporal "
            f"layer{'s' if model['layers'] > 1 else ''}, window {model['window']} of {model['positions']} "
            f"snippets, {model['image_size']} px in patches of {model['patch_size']}",
        ),
        ("labels", f"{len(model['labels'])}: {', '.join(model['labels'])}"),
        ("anomaly score", f"{model['anomaly']} branch"),
        ("preprocessing", ", ".join(f"{key} {_plain(value)}" for key, value in image.items())),
        (
            "sampling",
            ", ".join(f"{key} {_plain(value)}" for key, value in sampling.items() if value is not None),
        ),
    ]
    names = model.get("annotation_names", [])
    if differing := [
        f"{label} as {name}" for label, name in zip(model["labels"], names, strict=False) if label != name
    ]:
        facts.insert(5, ("in annotations", ", ".join(differing)))
    prompts = manifest.get("relabelled", {}).get("prompts", {})
    own = [f"{label} by {words!r}" for label, words in prompts.items() if words != label]
    if own:
        facts.insert(5, ("prompts", ", ".join(own)))
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]

    rows = []
    for name, entry in manifest["files"].items():
        graph = manifest["graphs"].get(name)
        nodes = f"{graph['nodes']} nodes, opset {graph['opset']}" if graph else ""
        if "backend" in entry:
            nodes += f", for {entry['backend']} alone, weights in {graph['weights']}"
        size = f"{entry['bytes'] / 1e6:.1f} MB"
        rows.append([name, entry["role"], entry["precision"] or "-", size, entry["sha256"][:12], nodes])
    lines += ["", table(["file", "role", "precision", "size", "sha256", "graph"], rows, right=(3,))]
    for name, graph in manifest["graphs"].items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in graph["kinds"].items())
        lines.append(f"{name}: {kinds}")
        if "int8" in graph:
            made = graph["int8"]
            kept = ", ".join(made["kept"]) or "none"
            lines.append(
                f"{name}: int8 ranges by {made['method']} from {made['ranges']['frames']} frames; linears kept in "
                f"float32: {kept}; cosine {made['cosine'][0]:.5f} at least, median {made['cosine'][1]:.5f}"
            )

    lines.append("")
    certificate = description["certificate"]
    if certificate is None:
        lines.append(f"no certificate: run vadexport verify {description['path']}")
    else:
        if certificate.get("bundle") != description["sha256"]:
            lines.append("the certificate is of another bundle: run vadexport verify again")
        for run in certificate["runs"]:
            verdict = "passed" if run["passed"] else "FAILED"
            machine = run["machine"]
            changes = ", ".join(f"{name}={value:g}" for name, value in run.get("changes", {}).items())
            if changes:
                verdict += f" within --limits {changes}"
            lines.append(
                f"certificate: {verdict} {run['date']} on {machine.get('cpu')} ({machine.get('architecture')}) with "
                f"{', '.join(run['libraries'])}"
            )
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
