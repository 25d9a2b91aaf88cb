"""A small CLIP for the synthetic world, trained contrastively on its frames and captions.

``python -m vadclip.world.clip --world DIR --out clip.safetensors`` writes a state dict of ``open_clip.model.CLIP``.
Only the training split is seen. As with the real CLIP the captions say what is in a picture, events included: what
VadCLIP is given without frame-level labels is the video-level label alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vadclip.checkpoint import save_clip
from vadclip.clip import build_clip
from vadclip.config import ClipConfig
from vadclip.images import normalise
from vadclip.prompt import tokenizer
from vadrun.console import run_command
from vadrun.errors import UserError
from vadrun.preprocessing import TEN_CROPS, Preprocessing
from vadrun.video import Video

WORLD_CLIP = ClipConfig(
    image_size=112,
    patch=14,
    vision_width=192,
    vision_layers=5,
    vision_heads=3,
    text_width=128,
    text_layers=2,
    text_heads=2,
    context=32,
)
"""Image and text encoder have 2.4 and 0.4 million weights, the token embedding not counted."""
EMBED_DIM = 128
NORM = 10.0
"""Mean norm of the image features, as the released CLIP has it: learning rates of the head depend on it."""
_CROPS = TEN_CROPS[:5]  # the centre and the corners; mirroring is done while training
_MAX_SCALE = 100.0  # of the logits, as in CLIP
_PART = 64  # pictures that go through the encoder at once

Say = Callable[[str], None]


@dataclass(frozen=True)
class Frames:
    """Captioned frames of the training split.

    Attributes:
        images: uint8 [n,5,S,S,3], centre and corners of each frame.
        captions: n sentences.
        event: bool [n], true where the caption tells an event.
    """

    images: NDArray[np.uint8]
    captions: Sequence[str]
    event: NDArray[np.bool_]


def read_frames(world: Path, size: int, say: Say = print) -> Frames:
    """The middle frame of every snippet of the training videos, read as the runtime reads them, with its caption.

    The pictures are kept in ``frames-SIZE.npy`` in the world's folder: reading them takes minutes.

    Args:
        world: folder of :func:`vadclip.world.dataset.write_dataset`.
        size: S.

    Raises:
        UserError: the folder holds no whole world.
    """
    path = world / "captions.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        told: dict[str, dict[int, tuple[str, bool]]] = {}
        for line in lines:
            if line["split"] == "train":
                sentence = (str(line["caption"]), line["label"] != "normal")
                told.setdefault(line["video"], {})[int(line["frame"])] = sentence
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not read ({error}): make the world with python -m vadclip.world") from error
    captions: list[str] = []
    event: list[bool] = []
    counts: dict[str, int] = {}
    for video, sentences in told.items():
        # Frame 8 of every snippet of 16, which is the one that stands for it, where the snippet is surely whole.
        whole = [frame for frame in sorted(sentences) if frame % 16 == 8 and frame + 7 <= max(sentences)]
        counts[video] = len(whole)
        captions += [sentences[frame][0] for frame in whole]
        event += [sentences[frame][1] for frame in whole]
    shape = (len(captions), len(_CROPS), size, size, 3)
    kept = world / f"frames-{size}.npy"
    if not kept.exists():
        _write_frames(world, kept, counts, shape, say)
    images = np.load(kept, mmap_mode="r")
    if images.shape != shape:
        raise UserError(f"{kept} has another number of frames than {path}: remove it, it will be made again")
    return Frames(images, captions, np.array(event))


def _write_frames(world: Path, path: Path, counts: dict[str, int], shape: tuple[int, ...], say: Say) -> None:
    preprocessing = Preprocessing.for_size(shape[2])
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        row = 0
        for number, (name, count) in enumerate(counts.items(), 1):
            with Video(world / name) as video:
                for index, snippet in enumerate(video.snippets(None, preprocessing, _CROPS)):
                    if index < count:
                        images[row + index] = snippet.images[0]
            row += count
            if number % 50 == 0 or number == len(counts):
                say(f"read {number} of {len(counts)} videos")
        images.flush()
        del images
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def train_clip(
    frames: Frames,
    config: ClipConfig = WORLD_CLIP,
    embed_dim: int = EMBED_DIM,
    *,
    epochs: int = 12,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    say: Say = print,
) -> nn.Module:
    """Train a CLIP from nothing with the symmetric contrastive loss of Radford et al. (2021).

    Half of each batch are frames of events, which are rarer than that. Equal captions, of which a fixed camera has
    many, are one.

    Args:
        frames: what to train on.
        config: sizes of the model.
        embed_dim: d.
        epochs: passes over as many pictures as there are.
        batch: pictures in a batch.
        lr: AdamW's, reached after a fiftieth of the steps, falling to 0 along a cosine.
        seed: of the weights and of the order.

    Returns:
        The model in evaluation mode, its image features scaled to a mean norm of ``NORM``.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clip: Any = build_clip(embed_dim, config)
    texts, caption_of = np.unique(np.array(frames.captions), return_inverse=True)
    tokens = caption_tokens(texts.tolist(), config.context)
    decayed = [value for value in clip.parameters() if value.ndim >= 2]
    others = [value for value in clip.parameters() if value.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )
    steps = max(len(caption_of) // batch, 1)
    sides = [np.flatnonzero(frames.event), np.flatnonzero(~frames.event)]
    sides = [side for side in sides if len(side)]
    clip.train()
    for epoch in range(epochs):
        total = right = 0.0
        for step in range(steps):
            _set_lr(optimizer, lr, (epoch * steps + step) / (epochs * steps))
            rows = np.concatenate([rng.choice(side, batch // len(sides)) for side in sides])
            images = _augmented(frames.images, rows, rng)
            loss, matched = _contrastive(clip, images, tokens, torch.from_numpy(caption_of[rows]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, math.log(_MAX_SCALE))
            total, right = total + loss.item(), right + matched
        say(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  matched {right / steps:.3f}")
    clip.eval()
    _scale_features(clip, frames, rng)
    _forget_unseen(clip, tokens)
    return clip  # type: ignore[no-any-return]


def caption_tokens(captions: Sequence[str], context: int) -> Tensor:
    """int64 [n,context]: start, words, end, zeros.

    Raises:
        UserError: a caption is too long.
    """
    tokens = torch.zeros(len(captions), context, dtype=torch.int64)
    for row, caption in enumerate(captions):
        ids = [tokenizer().sot_token_id, *tokenizer().encode(caption), tokenizer().eot_token_id]
        if len(ids) > context:
            raise UserError(f"the caption {caption!r} has {len(ids)} tokens, more than CLIP's {context}: shorten it")
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def _contrastive(clip: Any, images: Tensor, tokens: Tensor, captions: Tensor) -> tuple[Tensor, float]:
    """The loss, and the share of pictures whose caption is the nearest.

    Equal captions of a batch are one class: pictures are told apart by captions, and captions by their pictures.

    Args:
        clip: the model.
        images: [n,3,S,S].
        tokens: [m,context] of all captions.
        captions: int64 [n], each picture's.
    """
    distinct, own = captions.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    # In parts: larger tensors than these cost more in page faults than in arithmetic.
    image = torch.cat([clip.encode_image(part, normalize=True) for part in torch.split(images, _PART)])
    text = clip.encode_text(tokens[distinct], normalize=True)
    logits = clip.logit_scale.exp() * image @ text.T
    pictures = F.one_hot(own, len(distinct)).float().T
    pictures = pictures / pictures.sum(dim=1, keepdim=True)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, pictures)) / 2
    return loss, float((logits.argmax(dim=1) == own).float().mean())


def _augmented(images: NDArray[np.uint8], rows: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """One of the crops of each row, mirrored or not, darker or brighter; normalised."""
    crops = np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(1, images.shape[1], len(rows)))
    order = np.argsort(rows)  # a mapped file is read faster in order
    picked = np.empty((len(rows), *images.shape[2:]), np.uint8)
    for index in order:
        picked[index] = images[rows[index], crops[index]]
    mirrored = rng.random(len(rows)) < 0.5
    picked[mirrored] = picked[mirrored][:, :, ::-1]
    tensor = normalise(picked)
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (len(rows), 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.2, 0.2, (len(rows), 1, 1, 1)).astype(np.float32))
    return tensor * gain + shift


def _set_lr(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = peak * min(done * 50 + 0.01, 1.0) * (0.5 + 0.5 * math.cos(math.pi * done))


@torch.no_grad()
def _scale_features(clip: Any, frames: Frames, rng: np.random.Generator) -> None:
    rows = np.sort(rng.choice(len(frames.images), min(512, len(frames.images)), replace=False))
    features = clip.encode_image(normalise(np.stack([frames.images[row, 0] for row in rows])))
    clip.visual.proj.mul_(NORM / features.norm(dim=1).mean())


@torch.no_grad()
def _forget_unseen(clip: Any, tokens: Tensor) -> None:
    """Words that no caption has know nothing: zeros, which a compact checkpoint leaves out."""
    seen = torch.zeros(len(clip.token_embedding.weight), dtype=torch.bool)
    seen[tokens.flatten()] = True
    clip.token_embedding.weight[~seen] = 0.0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="python -m vadclip.world.clip", description="Train a small CLIP on a synthetic world's training frames."
    )
    p.add_argument("--world", required=True, type=Path, metavar="DIR", help="what python -m vadclip.world made")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    p.add_argument("--epochs", type=int, default=12, metavar="N", help="default 12")
    p.add_argument("--batch", type=int, default=128, metavar="N", help="default 128")
    p.add_argument("--lr", type=float, default=1e-3, metavar="X", help="highest learning rate (default 0.001)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and order (default 0)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_command("vadclip.world.clip", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.epochs < 1 or arguments.batch < 2 or not 0 < arguments.lr < math.inf or arguments.seed < 0:
        raise UserError("--epochs, --batch, --lr and --seed must be above 0 (batch 2 or more, seed 0 or more)")
    if not arguments.out.parent.is_dir():
        raise UserError(f"{arguments.out.parent} is no folder: make it, or name another file with --out")
    frames = read_frames(arguments.world, WORLD_CLIP.image_size, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{len(frames.captions)} frames, {int(frames.event.sum())} of events", file=sys.stderr, flush=True)
    clip = train_clip(
        frames,
        epochs=arguments.epochs,
        batch=arguments.batch,
        lr=arguments.lr,
        seed=arguments.seed,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    save_clip(clip, arguments.out)
    print(f"CLIP in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
