"""What a VadCLIP model is made of, as plain data that JSON can carry."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from vadclip.presets import ANOMALY_BRANCHES, Anomaly, check_labels
from vadrun.errors import UserError
from vadrun.schema import Where, parse_json, shown

_Config = TypeVar("_Config", "ClipConfig", "Design", "ModelConfig")

Temporal = Literal["none", "global", "local", "gcn", "local+global", "global+gcn", "lgt"]
"""What models time (Table 5): transformers over all snippets or within windows, the graph convolutions, or both."""
TextPrompt = Literal["learned", "hand", "plain"]
"""What stands around a label (Table 7): learned vectors (Eq. 5), ``a video of LABEL``, or nothing."""
VisualPrompt = Literal["anomaly", "average", "none"]
"""V (Tables 6 and 7): weighted by anomaly (Eq. 6), the plain mean of the snippets, or none."""
Branches = Literal["both", "confidence", "alignment"]
"""What is trained (Table 6): both branches, only the C-branch or only the A-branch."""
Activation = Literal["quickgelu", "gelu"]
"""Between the two linears of each of CLIP's blocks: ``x sigmoid(1.702 x)`` as OpenAI trained, or the exact GELU."""

# Far above any model that there is; a file that says more is damaged, and would ask for terabytes.
_MOST = {
    # By the last word of a name: ``clip.vision_width``, ``prompt_prefix``.
    "dim": 1 << 14,
    "width": 1 << 14,
    "window": 1 << 20,
    "layers": 256,
    "heads": 1 << 10,
    "positions": 4096,
    "prefix": 4096,
    "postfix": 4096,
    "size": 4096,
    "patch": 4096,
    "context": 4096,
    "vocab": 1 << 20,
}


@dataclass(frozen=True)
class Design:
    """Which of VadCLIP's parts a model has: the default is VadCLIP, the others are the paper's ablations.

    Raises:
        UserError: a value is none of its kind.
    """

    temporal: Temporal = "lgt"
    prompt: TextPrompt = "learned"
    visual: VisualPrompt = "anomaly"
    branches: Branches = "both"

    def __post_init__(self) -> None:
        kinds = {"temporal": Temporal, "prompt": TextPrompt, "visual": VisualPrompt, "branches": Branches}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} is {shown(getattr(self, name))}: use one of {', '.join(get_args(kind))}")


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP model with a vision transformer, without its weights; the defaults are OpenAI's ViT-B/16.

    The heads and the activation are not in the weights: two models of equal sizes may differ in them.

    Raises:
        UserError: a size is not a positive whole number, does not fit another one or is absurdly large, or the
            activation is unknown.
    """

    image_size: int = 224
    patch: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context: int = 77
    vocab: int = 49408
    activation: Activation = "quickgelu"

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name != "activation":
                _whole(f"clip.{entry.name}", getattr(self, entry.name), 1, _MOST[entry.name.rpartition("_")[2]])
        if self.activation not in get_args(Activation):
            raise UserError(f"clip.activation is {shown(self.activation)}: use {' or '.join(get_args(Activation))}")
        _divides("clip.patch", self.patch, "clip.image_size", self.image_size)
        _divides("clip.vision_heads", self.vision_heads, "clip.vision_width", self.vision_width)
        _divides("clip.text_heads", self.text_heads, "clip.text_width", self.text_width)

    @classmethod
    def from_data(cls, data: Any, name: str) -> ClipConfig:
        """Read the value that ``dataclasses.asdict`` gave, named ``name`` in messages.

        Raises:
            UserError: it is no object, an entry is unknown, or a value does not pass the checks.
        """
        return cls(**_entries(cls, data, name))


@dataclass(frozen=True)
class ModelConfig:
    """A VadCLIP model without its weights.

    Attributes:
        embed_dim: d, the width of CLIP's features and of the whole head.
        window: attention window of the local module, in snippets.
        layers: transformer layers of the local module.
        labels: prompt labels, normal first.
        anomaly: the branch that gives the anomaly score.
        heads: attention heads of the local module.
        positions: T, how many snippets the head sees at once.
        prompt_prefix: learned tokens before the label (Eq. 5).
        prompt_postfix: learned tokens after it.
        mask_padding: exclude padded positions everywhere; off in the released models.
        temperature: tau of Eq. 8, by which the alignment is divided.
        clip: sizes of the CLIP model inside.
        design: the parts that it has.

    Raises:
        UserError: a value is of the wrong type, out of range, or does not fit another one.
    """

    embed_dim: int
    window: int
    layers: int
    labels: tuple[str, ...]
    anomaly: Anomaly = "confidence"
    heads: int = 1
    positions: int = 256
    prompt_prefix: int = 10
    prompt_postfix: int = 10
    mask_padding: bool = False
    temperature: float = 0.07
    clip: ClipConfig = field(default_factory=ClipConfig)
    design: Design = field(default_factory=Design)

    def __post_init__(self) -> None:
        for name in ("embed_dim", "window", "layers", "heads", "positions"):
            _whole(name, getattr(self, name), 1, _MOST[name.rpartition("_")[2]])
        for name in ("prompt_prefix", "prompt_postfix"):
            _whole(name, getattr(self, name), 0, _MOST[name.rpartition("_")[2]])
        _divides("heads", self.heads, "embed_dim", self.embed_dim)
        _divides("2, the number of graph branches", 2, "embed_dim", self.embed_dim)
        object.__setattr__(self, "labels", check_labels(self.labels))
        if self.anomaly not in ANOMALY_BRANCHES:
            raise UserError(f"anomaly is {shown(self.anomaly)}: use one of {', '.join(ANOMALY_BRANCHES)}")
        if not isinstance(self.mask_padding, bool):
            raise UserError(f"mask_padding is {shown(self.mask_padding)}: use true or false")
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not (number and 1e-4 <= self.temperature <= 1e4):
            raise UserError(f"temperature is {shown(self.temperature)}: use a number from 0.0001 to 10000")
        if not isinstance(self.clip, ClipConfig):
            raise UserError(f"clip is {shown(self.clip)}: use the sizes of a CLIP model")
        if not isinstance(self.design, Design):
            raise UserError(f"design is {shown(self.design)}: use the parts of a model")
        if self.label_tokens < 1:
            raise UserError(
                f"{self.prompt_prefix} + {self.prompt_postfix} prompt tokens leave no room for a label"
                f" in CLIP's context of {self.clip.context}: use fewer"
            )

    @property
    def label_tokens(self) -> int:
        """How many tokens a label (with the words by hand) may have: the context less start, end and learned prompt."""
        learned = self.prompt_prefix + self.prompt_postfix if self.design.prompt == "learned" else 0
        return self.clip.context - 2 - learned

    def to_json(self) -> str:
        """The configuration as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            UserError: not a JSON object, an entry is unknown or missing, or a value does not pass the checks.
        """
        data = parse_json(text, Where("the model configuration", "save the model again"))
        values = _entries(cls, data, "the model configuration")
        if "clip" in values:
            values["clip"] = ClipConfig.from_data(values["clip"], "its entry 'clip'")
        if "design" in values:
            values["design"] = Design(**_entries(Design, values["design"], "its entry 'design'"))
        return cls(**values)


def _entries(kind: type[_Config], data: Any, name: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{name} is not a JSON object; save the model again")
    known = {entry.name: entry.default is MISSING and entry.default_factory is MISSING for entry in fields(kind)}
    if unknown := sorted(set(data) - set(known)):
        raise UserError(f"{name} has the unknown entry {shown(unknown[0])}; it was made by another version")
    if missing := [key for key, required in known.items() if required and key not in data]:
        raise UserError(f"{name} has no entry {missing[0]!r}; save the model again")
    return dict(data)


def _whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {shown(value)}: use a whole number from {least} to {most}")


def _divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    if whole % divisor:
        what = name if name[0].isdigit() else f"{name} {divisor}"
        raise UserError(f"{whole_name} {whole} is not a multiple of {what}: use a number that divides it")
