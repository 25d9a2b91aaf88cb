import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vadclip.checkpoint import load_clip
from vadclip.clip import build_clip, clip_config
from vadclip.torchscript import ArchiveError, state_dict
from vadclip.untrained import SMALL
from vadclip.weights import read_weights
from vadrun.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:`torch.jit:DeprecationWarning")


class Tree(nn.Module):
    """Modules with these tensors as buffers, under the names of a state dict."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for key, value in weights.items():
            first, _, rest = key.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = value
            else:
                self.register_buffer(first, value)
        for name, part in inner.items():
            self.add_module(name, Tree(part))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Gelu(Tree):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    clip = build_clip(64, SMALL)
    numbers = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    return {key: value.half() for key, value in clip.state_dict().items()} | numbers


def archive(path: Path, module: nn.Module) -> Path:
    torch.jit.save(torch.jit.script(module), path)
    return path


def changed(path: Path, name: str, data: bytes, **options: Any) -> Path:
    """The archive with other bytes in the member ``name``."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for member, content in members.items():
            new.writestr(member, data if member.partition("/")[2] == name else content, **options)
    return path


def test_openais_archive(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """As ViT-B-16.pt is: float16, with three numbers beside the weights, QuickGELU and heads of 64."""
    path = archive(tmp_path / "ViT-B-16.pt", Tree(weights))
    found = read_weights(path)
    expected = torch.jit.load(path).state_dict()
    assert found.openai and set(found.weights) == set(expected) - {"input_resolution", "context_length", "vocab_size"}
    assert all(torch.equal(value, expected[key]) for key, value in found.weights.items())
    clip = load_clip(path)
    assert clip_config(clip) == (SMALL, 64)
    assert {value.dtype for value in clip.state_dict().values()} == {torch.float32}


def test_archive_of_another_clip_does_not_pass_for_openais(weights: dict[str, Tensor], tmp_path: Path) -> None:
    plain = {key: value for key, value in weights.items() if value.is_floating_point()}
    path = archive(tmp_path / "laion.pt", Gelu(plain))
    with pytest.raises(UserError, match="do not tell their CLIP's activation and heads: say which it is with --clip-m"):
        load_clip(path)


def test_state_dict_of_openais_archive(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Saved by somebody with torch.save: the numbers that only OpenAI's have tell what it is."""
    torch.save(weights, tmp_path / "clip.pth")
    assert clip_config(load_clip(tmp_path / "clip.pth")) == (SMALL, 64)


class _Code:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.trace),)

    trace = ""


def test_nothing_in_it_is_run(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Neither what its pickle calls nor its program, which torch.jit.load would compile."""
    path = archive(tmp_path / "clip.pt", Tree(weights))
    changed(path, "code/__torch__/tests/vadclip/test_torchscript.py", b"this is no program")
    assert clip_config(load_clip(path)) == (SMALL, 64)
    code = _Code()
    code.trace = str(tmp_path / "trace")
    changed(path, "data.pkl", pickle.dumps(code, 2))
    with pytest.raises(UserError, match="holds no state dict"):
        load_clip(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pickle.dumps({"a": 1}, 2), "it holds no module"),
        (pickle.dumps([1] * 3, 0), "has the instruction"),
        (b"\x80\x02", "is damaged"),
        (b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00wX\x01\x00\x00\x00xQub.", "refers to something that is no t"),
        (b"\x80\x02c__torch__\nM\n)\x81q\x00}(X\x01\x00\x00\x00mh\x00X\x01\x00\x00\x00nh\x00ub.", "hold each other"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "holds no module"),
    ],
)
def test_pickles_that_are_refused(weights: dict[str, Tensor], tmp_path: Path, data: bytes, expected: str) -> None:
    path = changed(archive(tmp_path / "clip.pt", Tree({"a": torch.zeros(2)})), "data.pkl", data)
    with pytest.raises(UserError) as error:
        load_clip(path)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_one_number_does_not_stand_for_terabytes(tmp_path: Path) -> None:
    stretched = torch.zeros(1, dtype=torch.float16).expand(1 << 20, 1 << 20)
    path = archive(tmp_path / "clip.pt", Tree({"a": stretched}))
    with pytest.raises(UserError, match="larger than its storage"):
        read_weights(path)


def test_compressed_tensors_are_refused(tmp_path: Path) -> None:
    """A small file could hold any amount of them."""
    path = archive(tmp_path / "clip.pt", Tree({"a": torch.zeros(1 << 16)}))
    changed(path, "none", b"", compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        read_weights(path)


def test_only_what_a_state_dict_has() -> None:
    module = Tree({"a.b": torch.ones(2), "attn_mask": torch.zeros(3)})
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module), stream)
    with zipfile.ZipFile(stream) as opened:
        assert list(state_dict(opened)) == ["a.b"]
    with zipfile.ZipFile(io.BytesIO(), "w") as empty, pytest.raises((ArchiveError, KeyError)):
        state_dict(empty)
