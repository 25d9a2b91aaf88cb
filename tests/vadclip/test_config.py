import json
from dataclasses import replace
from typing import Any

import pytest

from vadclip.config import ClipConfig, ModelConfig
from vadrun.errors import UserError

CONFIG = ModelConfig(embed_dim=512, window=8, layers=2, labels=("normal", "fire", "Überfall"))


def test_json_round_trip() -> None:
    other = replace(
        CONFIG, anomaly="alignment", mask_padding=True, temperature=0.1, clip=ClipConfig(image_size=336, patch=14)
    )
    for config in (CONFIG, other):
        assert ModelConfig.from_json(config.to_json()) == config
    assert other != CONFIG


def test_defaults_are_the_released_model() -> None:
    assert (CONFIG.positions, CONFIG.heads, CONFIG.temperature, CONFIG.mask_padding) == (256, 1, 0.07, False)
    assert (CONFIG.prompt_prefix, CONFIG.prompt_postfix, CONFIG.label_tokens) == (10, 10, 55)
    assert CONFIG.clip == ClipConfig(224, 16, 768, 12, 12, 512, 12, 8, 77, 49408)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"window": 0}, "window is 0: use a whole number from 1 to 1048576"),
        ({"window": True}, "window is true"),
        ({"layers": 1.0}, "layers is 1.0"),
        ({"prompt_prefix": -1}, "prompt_prefix is -1: use a whole number from 0 to 4096"),
        ({"heads": 3}, "embed_dim 512 is not a multiple of heads 3"),
        ({"embed_dim": 511}, "embed_dim 511 is not a multiple of 2"),
        ({"labels": ("normal", "normal")}, "labels: 'normal' repeats"),
        ({"anomaly": "both"}, "anomaly is 'both': use one of confidence, alignment"),
        ({"mask_padding": 1}, "mask_padding is 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "0.07"}, "temperature is '0.07'"),
        ({"prompt_prefix": 40, "prompt_postfix": 35}, r"40 \+ 35 prompt tokens leave no room"),
        ({"clip": None}, "clip is null"),
    ],
)
def test_values_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"^{expected}"):
        replace(CONFIG, **change)


def test_clip_sizes_refused() -> None:
    with pytest.raises(UserError, match=r"^clip\.text_layers is 0"):
        ClipConfig(text_layers=0)
    with pytest.raises(UserError, match=r"^clip\.image_size 225 is not a multiple of clip\.patch 16"):
        ClipConfig(image_size=225)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: "no JSON", "the model configuration: it is not JSON"),
        (lambda data: json.dumps([1]), "the model configuration is not a JSON object"),
        (lambda data: json.dumps(data | {"colour": 1}), "has the unknown entry 'colour'"),
        (lambda data: json.dumps({k: v for k, v in data.items() if k != "window"}), "has no entry 'window'"),
        (lambda data: json.dumps(data | {"clip": 3}), "its entry 'clip' is not a JSON object"),
        (lambda data: json.dumps(data | {"clip": {"depth": 3}}), "its entry 'clip' has the unknown entry"),
        (lambda data: json.dumps(data | {"window": "8"}), "window is '8'"),
        (lambda data: json.dumps(data | {"labels": "normal"}), "labels: expected a list"),
    ],
)
def test_json_refused(change: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        ModelConfig.from_json(change(json.loads(CONFIG.to_json())))
