"""Which CLIP a file of weights is: open_clip's model names and configurations, and its pretrained weights.

Weights do not tell the activation (QuickGELU or GELU) nor the number of attention heads, and both are silent when they
are wrong: features then come out plausible and useless. Here is what does tell them.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from vadclip.config import ClipConfig
from vadclip.images import CLIP_MEAN, CLIP_STD
from vadrun.errors import UserError
from vadrun.schema import Where, parse_json, read_file, shown

OPENAI = "openai"
"""Instead of a model's name: any of OpenAI's, which all have QuickGELU and heads of 64."""
CONFIG_NAME = "open_clip_config.json"
"""What open_clip writes beside the weights of a model."""
ARCHITECTURE = "ViT-B-16-quickgelu"
"""open_clip's name of the CLIP that the released models are built on."""
HEAD_WIDTH = 64
"""Of every CLIP that OpenAI released."""
CHOICES = "openai (OpenAI's own), ViT-B-16 (LAION's and most others') or another of open_clip's model names"
"""What ``--clip-model`` takes, for a sentence."""

# What open_clip calls the weights in a repository of Hugging Face; not all of its versions tell.
_HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SECONDS = 10.0  # for a server to answer before it counts as out of reach
_MOST_CONFIG = 1 << 20
# Entries of a configuration that change nothing in a CLIP that is trained already, or that ClipConfig has.
_VISION = {"layers", "width", "head_width", "patch_size", "image_size", "patch_dropout", "output_tokens"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "output_tokens"}


@dataclass(frozen=True)
class KnownClip:
    """A CLIP that something tells about.

    Attributes:
        source: what tells, for sentences.
        config: its sizes, heads and activation; None for OpenAI's, whose sizes tell the heads.
        embed_dim: d; None where nothing tells it.
    """

    source: str
    config: ClipConfig | None = None
    embed_dim: int | None = None

    def check(self, config: ClipConfig, embed_dim: int) -> None:
        """Refuse a CLIP of other sizes, heads or activation.

        Raises:
            UserError: names the first that differs.
        """
        expected = self.config
        if expected is None:
            heads = max(config.vision_width // HEAD_WIDTH, 1), max(config.text_width // HEAD_WIDTH, 1)
            expected = replace(config, activation="quickgelu", vision_heads=heads[0], text_heads=heads[1])
        told = {**asdict(expected), "embed_dim": embed_dim if self.embed_dim is None else self.embed_dim}
        for name, value in {**asdict(config), "embed_dim": embed_dim}.items():
            if told[name] != value:
                raise UserError(f"its CLIP's {name} is {value}, but {self.source} has {told[name]}: name the right one")


def known_clip(name: str) -> KnownClip:
    """What ``--clip-model NAME`` stands for: open_clip's name of a model, ``openai``, or a configuration file.

    Raises:
        UserError: there is no such model or file, or this package cannot compute it.
    """
    if name == OPENAI:
        return KnownClip("OpenAI's CLIP")
    if name.endswith(".json"):
        return _read_config(Path(name))
    found = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if found is None:
        raise UserError(f"open_clip has no model {name!r}: use {CHOICES}, or its configuration file (.json)")
    return _from_config(found, f"open_clip's {name}")


def clip_beside(path: Path) -> KnownClip | None:
    """What open_clip's configuration beside a file of weights says, if there is one.

    Raises:
        UserError: it does not read, or this package cannot compute such a CLIP.
    """
    config = path.with_name(CONFIG_NAME)
    return _read_config(config) if config.is_file() else None


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights on this machine."""

    path: Path
    known: KnownClip


def pretrained_file(name: str) -> Pretrained:
    """The file of the weights that open_clip calls ``name``: a tag of ViT-B/16, or ``MODEL/TAG``.

    A file that is in open_clip's cache is taken from there without asking anybody; another one is downloaded.

    Raises:
        UserError: there are no such weights, or they are not here and cannot be downloaded.
    """
    model, tag = name.rsplit("/", 1) if "/" in name else (ARCHITECTURE, name)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        what = f"use one of {', '.join(tags)}" if tags else "open_clip has none for this model; use openai"
        raise UserError(f"unknown CLIP weights {shown(tag)} for {model}: {what}")
    facts = open_clip.get_pretrained_cfg(model, tag)
    config = dict(open_clip.get_model_config(model))
    config["quick_gelu"] = bool(config.get("quick_gelu") or facts.get("quick_gelu") or tag == OPENAI)
    source = f"open_clip's {model}/{tag}"
    known = _from_config({"model_cfg": config, "preprocess_cfg": facts}, source)
    path = _cached(facts)
    if path is None:
        path = _downloaded(facts, source)
    return Pretrained(path, known)


def _read_config(path: Path) -> KnownClip:
    where = Where(path, "name open_clip's configuration of the model")
    return _from_config(parse_json(read_file(path, where, most=_MOST_CONFIG), where), str(path))


def _from_config(data: Any, source: str) -> KnownClip:
    """The CLIP that a configuration of open_clip describes, bare or with that of its preprocessing."""
    preprocessing: Any = {}
    if isinstance(data, Mapping) and "model_cfg" in data:
        data, preprocessing = data["model_cfg"], data.get("preprocess_cfg") or {}
    if not isinstance(data, Mapping) or not isinstance(preprocessing, Mapping):
        raise UserError(f"{source} is no configuration of an open_clip model: name its {CONFIG_NAME}")
    vision = _settings(CLIPVisionCfg, data.get("vision_cfg"), _VISION, f"{source}, vision_cfg")
    text = _settings(CLIPTextCfg, data.get("text_cfg"), _TEXT, f"{source}, text_cfg")
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"}
    if other := [key for key in data if key not in known and data[key]]:
        raise UserError(f"{source} has the setting {other[0]!r}, which only other models than OpenAI's have: {_PLAIN}")
    quick = data.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise UserError(f"{source}: quick_gelu is {quick!r}: use true or false")
    for key, expected in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        if key in preprocessing and not _close(preprocessing[key], expected):
            raise UserError(f"{source} normalises frames with another {key} than OpenAI's CLIP: {_PLAIN}")
    size = vision["image_size"]
    if isinstance(size, list | tuple) and len(set(map(str, size))) == 1:
        size = size[0]
    if type(vision["layers"]) is not int:  # the four of a ResNet
        raise UserError(f"{source} is no vision transformer: {_PLAIN}")
    width, head = vision["width"], vision["head_width"]
    if type(width) is not int or type(head) is not int or head < 1:
        raise UserError(f"{source}: the widths {width!r} and {head!r} of its vision_cfg are no whole numbers")
    try:
        config = ClipConfig(
            image_size=size,
            patch=vision["patch_size"],
            vision_width=width,
            vision_layers=vision["layers"],
            vision_heads=width // head,
            text_width=text["width"],
            text_layers=text["layers"],
            text_heads=text["heads"],
            context=text["context_length"],
            vocab=text["vocab_size"],
            activation="quickgelu" if quick else "gelu",
        )
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    embed_dim = data.get("embed_dim")
    if type(embed_dim) is not int:
        raise UserError(f"{source} has no embed_dim: name open_clip's configuration of the model")
    return KnownClip(source, config, embed_dim)


_PLAIN = "use a CLIP with OpenAI's vision transformer"


def _settings(kind: type[Any], given: Any, free: set[str], source: str) -> dict[str, Any]:
    """A configuration's entries with open_clip's defaults; all but the ``free`` ones must have these."""
    if not isinstance(given, Mapping):
        raise UserError(f"{source} is missing: name open_clip's configuration of the model")
    defaults = {entry.name: entry.default for entry in fields(kind)}
    for key, value in given.items():
        if key not in free and (key not in defaults or value != defaults[key]):
            raise UserError(f"{source} has the setting {shown(key)} ({shown(value)}), which is not supported: {_PLAIN}")
    return {**defaults, **given}


def _close(values: Any, expected: tuple[float, ...]) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == len(expected)
        and all(isinstance(v, int | float) and abs(v - e) < 1e-3 for v, e in zip(values, expected, strict=True))
    )


def _cached(facts: Mapping[str, Any]) -> Path | None:
    """Weights that Hugging Face's cache on this machine has."""
    from huggingface_hub import try_to_load_from_cache

    if not facts.get("hf_hub"):
        return None
    repository, _, filename = facts["hf_hub"].rpartition("/")
    for candidate in (filename,) if filename else _HUB_NAMES:
        found = try_to_load_from_cache(repository, candidate)
        if isinstance(found, str):
            return Path(found)
    return None


def _downloaded(facts: Mapping[str, Any], source: str) -> Path:
    from huggingface_hub import constants, hf_hub_url

    reason = None
    if facts.get("hf_hub"):
        # Asked before, because huggingface_hub tries for a minute and writes a warning each time.
        repository, _, filename = facts["hf_hub"].rpartition("/")
        url = hf_hub_url(repository, filename or _HUB_NAMES[-1])
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(url)
    if reason is None:
        try:
            return Path(open_clip.download_pretrained(dict(facts)))
        except Exception as error:  # open_clip, huggingface_hub and urllib each fail with types of their own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
        f"the weights of {source} are not on this machine and cannot be downloaded ({reason}): connect to the internet"
        " once, or name a file of weights that holds a CLIP"
    )


def _unreachable(url: str) -> str | None:
    """Why the server of an address does not answer at all; None where it does, whatever it says."""
    try:
        # Proxies are those of the environment, as for the download.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # certificates are the downloader's business
            return None
        why = getattr(error.reason, "strerror", None) or str(error.reason)
    except OSError as error:  # no answer in time, too
        why = error.strerror or str(error) or "no answer"
    else:
        return None
    return f"no network: {why}"
