import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import Golden
from vadclip import load_checkpoint, save_checkpoint
from vadclip.checkpoint import load_clip
from vadclip.weights import read_weights
from vadrun.errors import UserError


def refused(path: Path, call: Callable[..., object] = read_weights, **options: Any) -> str:
    """The one sentence that a file is refused with, which names it and can be printed anywhere."""
    with pytest.raises(UserError) as error:
        call(path, **options)
    sentence = str(error.value)
    assert "\n" not in sentence and str(path) in sentence and len(sentence) < 500 and sentence.encode()
    return sentence


def save(weights: object, folder: Path) -> Path:
    torch.save(weights, folder / "model.pth")
    return folder / "model.pth"


# --- names


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod.module."]
)
def test_prefixes_of_wrapped_models(xd: Golden, tmp_path: Path, prefix: str) -> None:
    """DataParallel's and torch.compile's, in checkpoints and in files of a CLIP alone."""
    path = save({"state_dict": {prefix + key: value for key, value in xd.weights.items()}}, tmp_path)
    assert load_checkpoint(path, dataset="xd").state_dict().keys() == xd.weights.keys()
    clip = {key.removeprefix("clipmodel."): v for key, v in xd.weights.items() if key.startswith("clipmodel.")}
    path = save({prefix + key: value for key, value in clip.items()}, tmp_path)
    assert load_clip(path, "openai").state_dict().keys() == clip.keys()


def test_prefixes_of_wrapped_parts(tmp_path: Path) -> None:
    names = ["temporal._orig_mod.ln.weight", "_fsdp_wrapped_module.gc1._checkpoint_wrapped_module.weight"]
    found = read_weights(save({name: torch.zeros(1) for name in names}, tmp_path))
    assert list(found.weights) == ["temporal.ln.weight", "gc1.weight"]
    sentence = refused(save({"module.a": torch.zeros(1), "a": torch.zeros(1)}, tmp_path))
    assert "has 'a' twice, once as 'a'" in sentence


# --- weights that are none


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(1).expand(1 << 20, 1 << 20), "its weights are larger than the file"),
        (torch.zeros(2, device="meta"), "without plain numbers"),
        (torch.zeros(2, 2).to_sparse(), "without plain numbers"),
        (torch.zeros(2, dtype=torch.complex64), "is no weight"),
        (3, "is no weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_values_that_are_refused(tmp_path: Path, value: object, expected: str) -> None:
    assert expected in refused(save({"a": value}, tmp_path))


def test_names_are_shortened(tmp_path: Path) -> None:
    assert len(refused(save({"a" * 100_000: 3}, tmp_path))) < 300
    assert "\\ud800" in refused(save({"\ud800": 3}, tmp_path))


@pytest.mark.parametrize("what", ["clip", "checkpoint"])
def test_weights_that_are_not_finite_are_named(xd: Golden, tmp_path: Path, what: str) -> None:
    spoilt = xd.weights["clipmodel.ln_final.weight"].clone()
    spoilt[3] = float("nan")
    path = save({**xd.weights, "clipmodel.ln_final.weight": spoilt}, tmp_path)
    call: Callable[..., object] = load_clip if what == "clip" else load_checkpoint
    options = {} if what == "clip" else {"dataset": "xd"}
    assert "has NaN or infinite weights in '" in refused(path, call, **options)


def test_tensors_without_elements(xd: Golden, tmp_path: Path) -> None:
    for key in ("classifier.weight", "frame_position_embeddings.weight", "clipmodel.visual.conv1.weight"):
        path = save({**xd.weights, key: torch.zeros(0, *xd.weights[key].shape[1:])}, tmp_path)
        refused(path, load_checkpoint, dataset="xd")
        refused(path, load_clip) if key.startswith("clip") else load_clip(path)


@pytest.mark.parametrize(
    "key", ["temporal.resblocks.999999999999.x", "temporal.resblocks.²", "temporal.resblocks." + "9" * 5000]
)
def test_numbers_of_layers_that_there_are_not(xd: Golden, tmp_path: Path, key: str) -> None:
    """So many would be built."""
    path = save({**xd.weights, key: torch.zeros(1)}, tmp_path)
    assert "it also has" in refused(path, load_checkpoint, dataset="xd")


# --- damaged files


def test_a_damaged_weight_is_noticed(xd: Golden, tmp_path: Path) -> None:
    """torch.load does not look at the archive's checksums, and a wrong weight is a number like any other."""
    path = save(xd.weights, tmp_path)
    data = bytearray(path.read_bytes())
    at = data.find(xd.weights["gc1.weight"].numpy().tobytes())
    data[at + 400] ^= 1
    path.write_bytes(data)
    assert "Bad CRC-32" in refused(path)


def test_a_file_without_checksums_is_read(xd: Golden, tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        path = save(xd.weights, tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(path).weights.keys() == xd.weights.keys()


def test_a_name_in_an_archive_that_is_no_text(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(2)}, tmp_path)
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name.replace("version", "é"), data)
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    assert "is damaged (UnicodeDecodeError): get it again" in refused(path)


def test_a_header_that_asks_for_too_much(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in ((1 << 63) - 1, 10**9):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        assert "is not a checkpoint" in refused(path)
    with path.open("wb") as stream:
        stream.write((1 << 30).to_bytes(8, "little") + b"{}")
        stream.truncate(1 << 31)  # sparse
    assert "a header of 1073741824 bytes" in refused(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refused(tmp_path / "pipe")


# --- what a file of ours says of itself

HOSTILE: list[Any] = [10**30, -1, 0, 2**63, 1e308, "", None, True, [], {}, [[["a"]]], ["n", 3], "\x07", "a" * 9999, 4.5]


def rewritten(path: Path, metadata: Mapping[str, str], change: Mapping[str, Any]) -> Path:
    """A compact checkpoint with other metadata; ``config.window`` stands for an entry of the configuration."""
    found = dict(metadata)
    config = json.loads(found["config"])
    for key, value in change.items():
        if key.startswith("config."):
            target = config
            *parts, last = key.split(".")[1:]
            for part in parts:
                target = target[part]
            target[last] = value
            found["config"] = json.dumps(config)
        else:
            found[key] = value
    weights = read_weights(path).weights
    other = path.with_name("other.safetensors")
    save_file(weights, other, metadata=found)
    return other


@pytest.fixture(scope="module")
def compact(ucf: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compact") / "model.safetensors"
    model = ucf.load()
    with torch.no_grad():
        model.clipmodel.token_embedding.weight[100:-2] = 0.0
    model.feature_settings = {"encoder": "e"}
    save_checkpoint(model, path, compact=True)
    return path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"config.window": 10**30}, "window is a number of more than 20 digits: use a whole number from 1 to"),
        ({"config.positions": 10**9}, "positions is 1000000000: use a whole number from 1 to 4096"),
        ({"config.clip.vocab": 10**6}, "its token embeddings do not fit"),
        ({"config.clip.activation": "relu"}, "clip.activation is 'relu': use quickgelu or gelu"),
        ({"config.temperature": 1e-300}, "temperature is 1e-300"),
        ({"config.labels": ["normal", "\ud800"]}, "has half a character"),
        ({"config": "[" * 100_000}, "nests deeper than"),
        ({"config": '{"window": ' + "1" * 5000 + "}"}, "a number of 5000 digits"),
        ({"config": '{"window": 8, "window": 9}'}, "the key 'window' comes twice"),
        ({"features": '{"a":' * 50_000}, "nests deeper than"),
        ({"features": "[]"}, "how its features were made does not read"),
        ({"mirrored": "3"}, "its entry 'mirrored' is not true or false"),
        ({"clipmodel.token_embedding.weight": "-1 " * 102}, "its token embeddings do not fit"),
        ({"clipmodel.token_embedding.weight": "1 " * 10**6}, "its token embeddings do not fit"),
    ],
)
def test_metadata_that_is_refused(compact: Path, change: dict[str, Any], expected: str) -> None:
    from safetensors import safe_open

    with safe_open(compact, "pt") as stream:
        metadata = stream.metadata()
    assert expected in refused(rewritten(compact, metadata, change), load_checkpoint)


# --- many files


def test_fuzz(tmp_path: Path) -> None:
    """Whatever bytes of a file's structure are changed: it is read, or refused in one sentence."""
    weights = {f"temporal.resblocks.{n}.weight": torch.randn(2, n + 1) for n in range(3)}
    made: dict[str, bytes] = {}
    for kind, new in (("zip", True), ("legacy", False)):
        stream = io.BytesIO()
        torch.save({"epoch": 3, "state_dict": weights}, stream, _use_new_zipfile_serialization=new)
        made[kind] = stream.getvalue()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    made["safetensors"] = (tmp_path / "model.safetensors").read_bytes()
    rng = random.Random(20)
    path = tmp_path / "fuzz.pth"
    outcomes = []
    for turn in range(600):
        kind = list(made)[turn % 3]
        path.write_bytes(_mutated(rng, kind, made[kind]))
        try:
            outcomes.append(len(read_weights(path).weights))
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error) and len(str(error)) < 500
            outcomes.append(0)
    assert 300 < outcomes.count(0) < 600


def _mutated(rng: random.Random, kind: str, whole: bytes) -> bytes:
    data = bytearray(whole)
    if rng.random() < 0.1:
        return bytes(data[: rng.randrange(len(data))])
    if kind == "zip" and rng.random() < 0.5:  # with checksums that are right again
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                member = bytearray(old.read(name))
                if name.endswith("data.pkl"):
                    _scribble(rng, member, len(member))
                new.writestr(name, bytes(member))
        return changed.getvalue()
    end = 8 + int.from_bytes(whole[:8], "little") if kind == "safetensors" else len(data)
    _scribble(rng, data, end)
    return bytes(data)


def _scribble(rng: random.Random, data: bytearray, end: int) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, count = rng.randrange(end), rng.choice([1, 1, 2, 8])
        data[at : at + count] = rng.choice([b"\xff" * count, b"\0" * count, rng.randbytes(count)])
