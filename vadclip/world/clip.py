"""A small CLIP for the synthetic world, trained contrastively on captioned pictures of it.

``python -m vadclip.world.clip --stills DIR --out clip.safetensors`` writes a state dict of ``open_clip.model.CLIP``.
It sees none of a data set's scenes. As with the real CLIP the captions say what is in a picture, events included; it is
VadCLIP that has to do with the video-level label alone. Where CLIP learns from 400 million pictures, this one has to do
with tens of thousands: each has a short caption beside its long one, and phrases for its regions, with which patches
are matched (as in RegionCLIP, Zhong et al. 2022).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vadclip.checkpoint import save_clip
from vadclip.clip import build_clip
from vadclip.config import ClipConfig
from vadclip.images import normalise
from vadclip.prompt import tokenizer
from vadclip.world.clips import LABELS
from vadclip.world.regions import PHRASES
from vadclip.world.stills import SIZE, Stills, read_stills
from vadrun.console import run_command
from vadrun.errors import UserError

WORLD_CLIP = ClipConfig(
    image_size=SIZE,
    patch=16,
    vision_width=192,
    vision_layers=5,
    vision_heads=3,
    text_width=128,
    text_layers=2,
    text_heads=2,
    context=32,
)
"""The image encoder has 2.4 million weights, the text encoder 0.4 beside the token embedding."""
EMBED_DIM = 128
NORM = 10.0
"""Mean norm of the image features, as the released CLIP has it: learning rates of the head depend on it."""
_MAX_SCALE = 100.0  # of the logits, as in CLIP
_PART = 64  # pictures that go through the encoder at once
_HARDEST = "fighting"  # few pixels of a picture tell it from people who stand together
_ZOOM = 1.35  # how much larger a crop may be shown
_REGIONS = 20.0  # weight of the regions' loss
_REGION_BIAS = -4.0  # where their logits begin: few patches show any one phrase

Say = Callable[[str], None]


def train_clip(
    stills: Stills,
    config: ClipConfig = WORLD_CLIP,
    embed_dim: int = EMBED_DIM,
    *,
    epochs: int = 15,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    say: Say = print,
) -> nn.Module:
    """Train a CLIP from nothing with the symmetric contrastive loss of Radford et al. (2021).

    The loss is that of the captions, that of the labels as captions, and the binary cross entropy of every patch with
    every phrase. Half of each batch are frames of events, which are rarer than that, the classes alike but for
    the hardest. Equal captions, of which a fixed camera has many, are one. The
    encoder computes in bfloat16 where the processor does.

    Args:
        stills: what to train on.
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
    clip.visual.output_tokens = True
    texts, caption_of = np.unique(np.array(stills.captions), return_inverse=True)
    tokens = caption_tokens([*texts.tolist(), *LABELS, *PHRASES], config.context)
    label_of = np.array([LABELS.index(label) for label in stills.labels])
    places = _boxes(stills)
    region_scale = nn.Parameter(torch.tensor([math.log(10.0), _REGION_BIAS]))
    steps = max(len(caption_of) // batch, 1)
    sides = [np.flatnonzero(stills.event), np.flatnonzero(~stills.event)]
    drawn = [(side, _chances(label_of[side])) for side in sides if len(side)]
    vocabulary = _compact_vocabulary(clip, tokens)
    captions, labels, phrases = (
        torch.searchsorted(vocabulary, part)
        for part in torch.tensor_split(tokens, [len(texts), len(texts) + len(LABELS)])
    )
    decayed = [value for value in clip.parameters() if value.ndim >= 2]
    others = [value for value in clip.parameters() if value.ndim < 2] + [region_scale]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )
    clip.train()
    for epoch in range(epochs):
        total = right = 0.0
        for step in range(steps):
            _set_lr(optimizer, lr, (epoch * steps + step) / (epochs * steps))
            rows = np.concatenate([rng.choice(side, batch // len(sides), p=chances) for side, chances in drawn])
            images, shown = _augmented(stills.pictures, rows, rng, config, places)
            image, patches = _encoded(clip, images)
            loss, matched = _contrastive(clip, image, captions, torch.from_numpy(caption_of[rows]))
            loss = loss + _contrastive(clip, image, labels, torch.from_numpy(label_of[rows]))[0]
            loss = loss + _REGIONS * _region_loss(clip, patches, phrases, shown, region_scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                clip.logit_scale.clamp_(0, math.log(_MAX_SCALE))
            total, right = total + loss.item(), right + matched
        say(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  matched {right / steps:.3f}")
    clip.visual.output_tokens = False
    clip.eval()
    _scale_features(clip, stills, config.image_size)
    _whole_vocabulary(clip, vocabulary)
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


def _encoded(clip: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised features [n,d] of pictures [n,3,S,S], and those of their patches [n,p,d]."""
    visual, found = clip.visual, []
    with torch.autocast("cpu", torch.bfloat16, enabled=_computes_bfloat16()):
        # In parts: larger tensors than these cost more in page faults than in arithmetic.
        for part in torch.split(images, _PART):
            pooled, tokens = visual(part)
            found.append(torch.cat([pooled[:, None], tokens @ visual.proj], dim=1))
    features = F.normalize(torch.cat(found).float(), dim=-1)
    return features[:, 0], features[:, 1:]


def _contrastive(clip: Any, image: Tensor, tokens: Tensor, captions: Tensor) -> tuple[Tensor, float]:
    """The loss, and the share of pictures whose caption is the nearest.

    Equal captions of a batch are one class: pictures are told apart by captions, and captions by their pictures.

    Args:
        clip: the model.
        image: normalised features [n,d].
        tokens: [m,context] of all captions.
        captions: int64 [n], each picture's.
    """
    distinct, own = captions.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    text = clip.encode_text(tokens[distinct], normalize=True)
    logits = clip.logit_scale.exp() * image @ text.T
    pictures = F.one_hot(own, len(distinct)).float().T
    pictures = pictures / pictures.sum(dim=1, keepdim=True)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, pictures)) / 2
    return loss, float((logits.argmax(dim=1) == own).float().mean())


def _region_loss(clip: Any, patches: Tensor, phrases: Tensor, shown: Tensor, scale: Tensor) -> Tensor:
    """Binary cross entropy of every patch with every phrase.

    Args:
        clip: the model.
        patches: normalised features [n,p,d].
        phrases: tokens [k,context].
        shown: [n,p,k], 1 where a patch shows what the phrase says.
        scale: logarithm of the logits' scale, and their bias.
    """
    text = clip.encode_text(phrases, normalize=True)
    return F.binary_cross_entropy_with_logits(scale[0].exp() * patches @ text.T + scale[1], shown)


def _chances(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chances to draw pictures with these labels: all classes alike, the hardest twice as often."""
    weights = np.where(np.arange(len(LABELS)) == LABELS.index(_HARDEST), 2.0, 1.0)
    chances = (weights / np.maximum(np.bincount(labels, minlength=len(LABELS)), 1))[labels]
    return chances / chances.sum()  # type: ignore[no-any-return]


def _boxes(stills: Stills) -> list[NDArray[np.float64]]:
    """For each picture [k,5]: the phrase's number, then left, top, right and bottom in pixels."""
    height, width = stills.pictures.shape[1:3]
    unit = np.array([1, width, height, width, height], float)
    return [np.array([(r.phrase, *r.box) for r in found], float).reshape(-1, 5) * unit for found in stills.regions]


def _shown(
    boxes: NDArray[np.float64], corner: NDArray[np.float64], config: ClipConfig, side: float
) -> NDArray[np.float32]:
    """[g,g,k]: which patches of a crop show which phrase; a little more than the boxes, so that none is lost."""
    grid = config.image_size // config.patch
    shown = np.zeros((grid, grid, len(PHRASES)), np.float32)
    patch = side / grid
    centre = (np.arange(grid) + 0.5) * patch
    y, x = centre + corner[0], centre + corner[1]
    margin = 0.35 * patch
    for phrase, left, top, right, bottom in boxes:
        across = (x > left - margin) & (x < right + margin)
        down = (y > top - margin) & (y < bottom + margin)
        shown[np.ix_(down, across, [int(phrase)])] = 1.0
    return shown


def _augmented(
    pictures: NDArray[np.uint8],
    rows: NDArray[np.int64],
    rng: np.random.Generator,
    config: ClipConfig,
    places: Sequence[NDArray[np.float64]],
) -> tuple[Tensor, Tensor]:
    """A crop of each picture, the centre or any, enlarged or not, mirrored or not, darker or brighter; normalised.

    Returns:
        pictures [n,3,S,S], and which patch shows which phrase [n,p,k].
    """
    size, count = config.image_size, len(rows)
    sides = np.where(rng.random(count) < 0.5, size, size / rng.uniform(1.0, _ZOOM, count))
    room = np.array(pictures.shape[1:3]) - sides[:, None]
    corners = np.where(rng.random((count, 1)) < 0.5, room / 2, room * rng.random((count, 2)))
    corners = np.where(sides[:, None] == size, np.floor(corners), corners)  # whole pixels where nothing is enlarged
    whole = np.empty((count, *pictures.shape[1:]), np.uint8)
    for index in np.argsort(rows):  # a mapped file is read faster in order
        whole[index] = pictures[rows[index]]
    shown = np.stack(
        [_shown(places[row], corner, config, side) for row, corner, side in zip(rows, corners, sides, strict=True)]
    )
    mirrored = rng.random(count) < 0.5
    shown[mirrored] = shown[mirrored][:, :, ::-1]
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (count, 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.2, 0.2, (count, 1, 1, 1)).astype(np.float32))
    cut = normalise(_cut(whole, corners, sides, mirrored, size))
    return cut.mul_(gain).add_(shift), torch.from_numpy(shown).flatten(1, 2)


def _cut(
    whole: NDArray[np.uint8],
    corners: NDArray[np.float64],
    sides: NDArray[np.float64],
    mirrored: NDArray[np.bool_],
    size: int,
) -> NDArray[np.uint8]:
    """Squares of pictures [n,H,W,3] at ``corners`` (top, left) [n,2] with ``sides`` [n], as uint8 [n,size,size,3]."""
    cut = np.empty((len(whole), size, size, 3), np.uint8)
    for index, ((y, x), side) in enumerate(zip(corners, sides, strict=True)):
        if side == size:
            top, left = int(y), int(x)
            cut[index] = whole[index, top : top + size, left : left + size]
        else:
            box = (x, y, x + side, y + side)
            picture = Image.fromarray(whole[index])
            cut[index] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    cut[mirrored] = cut[mirrored][:, :, ::-1]
    return cut


def _computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; where it does not, emulating it would take longer than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _set_lr(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = peak * min(done * 50 + 0.01, 1.0) * (0.5 + 0.5 * math.cos(math.pi * done))


@torch.no_grad()
def _scale_features(clip: Any, stills: Stills, size: int) -> None:
    y, x = (np.array(stills.pictures.shape[1:3]) - size) // 2
    features = clip.encode_image(normalise(stills.pictures[:512, y : y + size, x : x + size]))
    clip.visual.proj.mul_(NORM / features.norm(dim=1).mean())


def _compact_vocabulary(clip: Any, tokens: Tensor) -> Tensor:
    """Leave the token embedding only the rows of tokens that occur, in their order; returns them, int64 [v].

    Of CLIP's 49,408 the world's captions have a few hundred, and gradients and AdamW would go through all.
    """
    seen = tokens.unique()  # type: ignore[no-untyped-call]
    known = clip.token_embedding.weight.detach()[seen]
    clip.token_embedding = nn.Embedding(len(seen), known.shape[1], _weight=known)
    return seen  # type: ignore[no-any-return]


@torch.no_grad()
def _whole_vocabulary(clip: Any, seen: Tensor) -> None:
    """Undo :func:`_compact_vocabulary`. Other words know nothing: zeros, which a compact checkpoint leaves out."""
    known = clip.token_embedding.weight
    clip.token_embedding = nn.Embedding(tokenizer().vocab_size, known.shape[1])
    clip.token_embedding.weight.zero_()
    clip.token_embedding.weight[seen] = known


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="python -m vadclip.world.clip",
        description="Train a small CLIP on captioned pictures of the synthetic world.",
    )
    p.add_argument("--stills", required=True, type=Path, metavar="DIR", help="what python -m vadclip.world.stills made")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    p.add_argument("--epochs", type=int, default=15, metavar="N", help="default 15")
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
    stills = read_stills(arguments.stills)
    clip = train_clip(
        stills,
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
