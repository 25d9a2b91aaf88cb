import json
import sys
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch

from vadclip.clip import build_clip, clip_config, pretrained
from vadclip.clip_models import clip_beside, known_clip
from vadclip.config import ClipConfig
from vadclip.untrained import SMALL
from vadrun.errors import UserError


def model_config(**changes: Any) -> dict[str, Any]:
    """open_clip's configuration of ``SMALL``, with GELU unless it is changed."""
    vision = {"image_size": 64, "patch_size": 16, "width": 128, "layers": 2}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    return {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text, **changes}


def written(folder: Path, data: object) -> Path:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "activation", "heads"),
    [
        ("ViT-B-16", "gelu", (12, 8)),
        ("ViT-B-16-quickgelu", "quickgelu", (12, 8)),
        ("ViT-H-14", "gelu", (16, 16)),
        ("ViT-L-14-336-quickgelu", "quickgelu", (16, 12)),
    ],
)
def test_names_of_open_clip(name: str, activation: str, heads: tuple[int, int]) -> None:
    known = known_clip(name)
    assert known.config is not None and known.config.activation == activation
    assert (known.config.vision_heads, known.config.text_heads) == heads


def test_names_and_files_that_are_none(tmp_path: Path) -> None:
    for name in ("ViT-B-17", "", "../ViT-B-16"):
        with pytest.raises(UserError, match=r"^open_clip has no model .*: use openai \(OpenAI's own\), ViT-B-16"):
            known_clip(name)
    with pytest.raises(UserError, match=r"none\.json: it does not exist"):
        known_clip(str(tmp_path / "none.json"))


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "ViT-H-14-CLIPA", "convnext_base"])
def test_models_of_another_kind_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="use a CLIP with OpenAI's vision transformer"):
        known_clip(name)


def test_configuration_beside_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_pytorch_model.bin"
    assert clip_beside(path) is None
    written(tmp_path, {"model_cfg": model_config(quick_gelu=True), "preprocess_cfg": {"mean": [0.481, 0.458, 0.408]}})
    known = clip_beside(path)
    assert known is not None and known.config == SMALL and known.embed_dim == 64
    written(tmp_path, model_config())  # bare, as open_clip's own files are
    known = clip_beside(path)
    assert known is not None and known.config is not None and known.config.activation == "gelu"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], "is no configuration of an open_clip model"),
        ({"model_cfg": 3}, "is no configuration of an open_clip model"),
        (model_config(vision_cfg=None), "vision_cfg is missing"),
        (model_config(quick_gelu="yes"), "quick_gelu is 'yes'"),
        (model_config(embed_dim="64"), "has no embed_dim"),
        (model_config(multimodal_cfg={"layers": 2}), "has the setting 'multimodal_cfg'"),
        (model_config(vision_cfg={"no_ln_pre": True}), "the setting 'no_ln_pre' (true)"),
        (model_config(vision_cfg={"width": 10**30}), "clip.vision_width is a number of"),
        (model_config(text_cfg={"heads": 3}), "is not a multiple of clip.text_heads 3"),
        (model_config(text_cfg={"hf_model_name": "roberta-base"}), "'hf_model_name' ('roberta-base')"),
        (model_config(vision_cfg={"image_size": [224, 448]}), "clip.image_size is a list of 2"),
        ({"model_cfg": model_config(), "preprocess_cfg": {"std": [0.5, 0.5, 0.5]}}, "another std than OpenAI's CLIP"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, data: object, expected: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(UserError) as error:
        clip_beside(tmp_path / "weights.bin")
    assert expected in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("activation", ["quickgelu", "gelu"])
def test_configuration_of_a_module(activation: Any) -> None:
    config = ClipConfig(**{**vars(SMALL), "vision_heads": 8, "text_heads": 4, "activation": activation})
    assert clip_config(build_clip(32, config)) == (config, 32)
    with pytest.raises(UserError, match="only CLIP models with a vision transformer"):
        clip_config(torch.nn.Linear(2, 2))


# --- pretrained weights


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been downloaded, and downloading is an error."""

    def download(facts: object) -> str:
        raise AssertionError("nothing was to be downloaded")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("open_clip.download_pretrained", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.URLError(OSError(-2, "Name or service not known")), "no network: Name or service not known"),
        (urllib.error.URLError(TimeoutError("timed out")), "no network: timed out"),
        (TimeoutError("The read operation timed out"), "no network: The read operation timed out"),
    ],
)
def test_no_network_is_said_at_once(
    empty_cache: None, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before, huggingface_hub tried twelve times, with a warning each."""
    asked = []

    def urlopen(request: Any, timeout: float) -> None:
        asked.append((request.full_url, request.get_method(), timeout))
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError) as caught:
        pretrained("openai")
    sentence = str(caught.value)
    assert f"cannot be downloaded ({reason}): connect to the internet once" in sentence
    assert "ViT-B-16-quickgelu/openai are not on this machine" in sentence and "\n" not in sentence
    assert len(asked) == 1 and asked[0][0].startswith("https://") and asked[0][1] == "HEAD" and asked[0][2] <= 10
    assert capfd.readouterr() == ("", "")


def test_offline_mode_is_said(empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match=r"cannot be downloaded \(HF_HUB_OFFLINE is set\)"):
        pretrained("openai")


def test_a_server_that_answers_is_asked_for_the_file(empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its answer to the first question is: the download says what is wrong."""

    def urlopen(request: Any, timeout: float) -> None:
        raise urllib.error.HTTPError(request.full_url, 401, "Unauthorized", Message(), None)

    def download(facts: object) -> str:
        raise RuntimeError("disk full\nand a long story")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr("open_clip.download_pretrained", download)
    with pytest.raises(UserError, match=r"cannot be downloaded \(disk full\): connect"):
        pretrained("openai")


def test_cached_weights_need_no_network(empty_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16-quickgelu", model_config(quick_gelu=True))
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16", model_config())
    clip = build_clip(64, SMALL)
    torch.save(clip.state_dict(), tmp_path / "cached.bin")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "cached.bin"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked"))
    expected = {"openai": "quickgelu", "ViT-B-16/openai": "quickgelu", "ViT-B-16/laion2b_s34b_b88k": "gelu"}
    for name, activation in expected.items():
        found = pretrained(name)
        assert clip_config(found)[0].activation == activation
        assert all(torch.equal(value, clip.state_dict()[key]) for key, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("opena", r"^unknown CLIP weights 'opena' for ViT-B-16-quickgelu: use one of openai"),
        ("ViT-B-16/opena", r"^unknown CLIP weights 'opena' for ViT-B-16: use one of openai, laion400m_e31"),
        ("none/openai", r"^unknown CLIP weights 'openai' for none: open_clip has none"),
    ],
)
def test_weights_that_there_are_not(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        pretrained(name)


def test_presets_and_config_need_no_torch() -> None:
    """Relabelling and calibration import them on boxes without PyTorch."""
    import subprocess

    code = "import sys, vadclip.config, vadclip.presets; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
