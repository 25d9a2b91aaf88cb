"""A small CLIP for the synthetic world, trained contrastively on captioned pictures of it.

``python -m vadclip.world.clip --stills DIR --out clip.safetensors`` writes a state dict of ``open_clip.model.CLIP``.
It sees none of a data set's scenes. As with the real CLIP the captions say what is in a picture, events included; it is
VadCLIP that has to do with the video-level label alone. Where CLIP learns from 400 million pictures, this one has to do
with tens of thousands: each has a short caption beside its long one, and phrases for its regions, with which patches
are matched (as in RegionCLIP, Zhong et al. 2022).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
from collections.abc import Callable, Sequence
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
from vadclip.world.clips import LABELS
from vadclip.world.crops import augmented, boxes_of
from vadclip.world.regions import PHRASES
from vadclip.world.stills import SIZE, Stills, read_stills
from vadrun.backends import processor_flags
from vadrun.console import run_command
from vadrun.errors import UserError
from vadrun.files import write_bytes
from vadrun.schema import Where, open_file

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
EPOCHS = 12
NORM = 10.0
"""Mean norm of the image features, as the released CLIP has it: learning rates of the head depend on it."""
_MAX_SCALE = 100.0  # of the logits, as in CLIP
_PART_PATCHES = 4096  # go through the encoder at once
_MASKED = 0.85  # of the epochs, in which half of the patches are seen
_HARDEST = "fighting"  # few pixels of a picture tell it from people who stand together
_REGIONS = 20.0  # weight of the regions' loss
_REGION_BIAS = -4.0  # where their logits begin: few patches show any one phrase

Say = Callable[[str], None]


def train_clip(
    stills: Stills,
    config: ClipConfig = WORLD_CLIP,
    embed_dim: int = EMBED_DIM,
    *,
    epochs: int = EPOCHS,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    state: Path | None = None,
    say: Say = print,
) -> nn.Module:
    """Train a CLIP from nothing with the symmetric contrastive loss of Radford et al. (2021).

    The loss is that of the captions, that of the labels as captions, and the binary cross entropy of every patch with
    every phrase. Half of each batch are frames of events, which are rarer than that, the classes alike but for
    the hardest. Equal captions, of which a fixed camera has many, are one. In the first epochs the encoder sees half of
    a picture's patches, those with a region first, for half the time (after FLIP, Li et al. 2023), in the last ones
    all. It computes in bfloat16 where the processor does.

    Args:
        stills: what to train on.
        config: sizes of the model.
        embed_dim: d.
        epochs: passes over as many pictures as there are.
        batch: pictures in a batch.
        lr: AdamW's, reached after a fiftieth of the steps, falling to 0 along a cosine.
        seed: of the weights and of the order.
        state: file in which each epoch leaves what is needed to go on; where it exists, training goes on from it.
        say: told each epoch's loss.

    Returns:
        The model in evaluation mode, its image features scaled to a mean norm of ``NORM``.

    Raises:
        UserError: the state is damaged, or of another training.
    """
    training = _Training(stills, config, embed_dim, epochs=epochs, batch=batch, lr=lr, seed=seed)
    begun = training.load(state) if state is not None and state.exists() else 0
    if begun:
        say(f"going on after epoch {begun}/{epochs}")
    for epoch in range(begun, epochs):
        loss, matched = training.epoch(epoch)
        say(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}  matched {matched:.3f}")
        if state is not None:
            training.save(state, epoch + 1)
    return training.finish()


class _Training:
    """A training's model, optimizer and texts."""

    def __init__(
        self, stills: Stills, config: ClipConfig, embed_dim: int, *, epochs: int, batch: int, lr: float, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self._stills, self._config = stills, config
        self._epochs, self._batch, self._lr, self._seed = epochs, batch, lr, seed
        clip: Any = build_clip(embed_dim, config)
        clip.visual.output_tokens = True
        clip.visual.patch_dropout = self._sieve = _Sieve()
        self._clip = clip.train()
        texts, self._caption_of = np.unique(np.array(stills.captions), return_inverse=True)
        tokens = caption_tokens([*texts.tolist(), *LABELS, *PHRASES], config.context)
        self._label_of = np.array([LABELS.index(label) for label in stills.labels])
        self._places = boxes_of(stills)
        self._region_scale = nn.Parameter(torch.tensor([math.log(10.0), _REGION_BIAS]))
        sides = [np.flatnonzero(stills.event), np.flatnonzero(~stills.event)]
        self._drawn = [(side, _chances(self._label_of[side])) for side in sides if len(side)]
        self._vocabulary = _compact_vocabulary(self._clip, tokens)
        self._captions, self._labels, self._phrases = (
            torch.searchsorted(self._vocabulary, part)
            for part in torch.tensor_split(tokens, [len(texts), len(texts) + len(LABELS)])
        )
        decayed = [value for value in self._clip.parameters() if value.ndim >= 2]
        others = [value for value in self._clip.parameters() if value.ndim < 2] + [self._region_scale]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.98),
        )
        captions = hashlib.sha256("\n".join(stills.captions).encode()).hexdigest()
        self._told = [captions, str(config), embed_dim, epochs, batch, lr, seed]

    def epoch(self, number: int) -> tuple[float, float]:
        """Mean loss of an epoch, and the share of pictures whose caption was the nearest."""
        rng = np.random.default_rng([self._seed, number])
        steps = max(len(self._caption_of) // self._batch, 1)
        kept = (self._config.image_size // self._config.patch) ** 2
        if number < int(_MASKED * self._epochs):
            kept //= 2
        total = right = 0.0
        for step in range(steps):
            done = (number * steps + step) / (self._epochs * steps)
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr * min(done * 50 + 0.01, 1.0) * (0.5 + 0.5 * math.cos(math.pi * done))
            share = self._batch // len(self._drawn)
            rows = np.concatenate([rng.choice(side, share, p=chances) for side, chances in self._drawn])
            loss, matched = self._loss(rows, kept, rng)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._clip.parameters(), 1.0)
            self._optimizer.step()
            with torch.no_grad():
                self._clip.logit_scale.clamp_(0, math.log(_MAX_SCALE))
            total, right = total + loss.item(), right + matched
        return total / steps, right / steps

    def _loss(self, rows: NDArray[np.int64], kept: int, rng: np.random.Generator) -> tuple[Tensor, float]:
        clip = self._clip
        images, shown = augmented(self._stills.pictures, rows, rng, self._config, self._places)
        chosen = _telling(shown, kept, rng)
        image, patches = self._encoded(images, chosen)
        loss, matched = _contrastive(clip, image, self._captions, torch.from_numpy(self._caption_of[rows]))
        loss = loss + _contrastive(clip, image, self._labels, torch.from_numpy(self._label_of[rows]))[0]
        shown = shown.take_along_dim(chosen[..., None], 1)
        return loss + _REGIONS * _region_loss(clip, patches, self._phrases, shown, self._region_scale), matched

    def _encoded(self, images: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features [n,d] of pictures [n,3,S,S], and those [n,k,d] of their patches ``chosen`` [n,k]."""
        visual, found = self._clip.visual, []
        # In parts: larger tensors than these cost more in page faults than in arithmetic.
        part = _PART_PATCHES // chosen.shape[1]
        with torch.autocast("cpu", torch.bfloat16, enabled=_computes_bfloat16()):
            for pictures, self._sieve.chosen in zip(torch.split(images, part), torch.split(chosen, part), strict=True):
                pooled, tokens = visual(pictures)
                found.append(torch.cat([pooled[:, None], tokens @ visual.proj], dim=1))
        features = F.normalize(torch.cat(found).float(), dim=-1)
        return features[:, 0], features[:, 1:]

    def save(self, path: Path, done: int) -> None:
        """Leave what is needed to go on after ``done`` epochs."""
        content = {
            "told": self._told,
            "done": done,
            "clip": self._clip.state_dict(),
            "region_scale": self._region_scale.detach(),
            "optimizer": self._optimizer.state_dict(),
        }
        stream = io.BytesIO()
        torch.save(content, stream)
        write_bytes(path, stream.getbuffer())

    def load(self, path: Path) -> int:
        """Take up what :meth:`save` left; returns the epochs that are done."""
        try:
            with open_file(path, Where(path, "remove it to begin again")) as stream:
                content = torch.load(stream, weights_only=True)
            told, done = content["told"], int(content["done"])
            if told == self._told:
                self._clip.load_state_dict(content["clip"])
                self._region_scale.data.copy_(content["region_scale"])
                self._optimizer.load_state_dict(content["optimizer"])
        except UserError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise UserError(f"{path} is damaged ({type(error).__name__}): remove it to begin again") from error
        if told != self._told:
            raise UserError(
                f"{path} is of a training on other pictures or with other options: remove it to begin again"
            )
        return done

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The model as others use it."""
        clip, size = self._clip, self._config.image_size
        clip.visual.output_tokens, clip.visual.patch_dropout = False, nn.Identity()
        clip.eval()
        pictures = self._stills.pictures
        y, x = (np.array(pictures.shape[1:3]) - size) // 2
        features = clip.encode_image(normalise(pictures[:512, y : y + size, x : x + size]))
        clip.visual.proj.mul_(NORM / features.norm(dim=1).mean())
        _whole_vocabulary(clip, self._vocabulary)
        return clip  # type: ignore[no-any-return]


class _Sieve(nn.Module):
    """Stands where CLIP may drop patches; leaves those that were chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen = torch.empty(0, 0, dtype=torch.int64)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [n,1+p,w], the class token first, to [n,1+k,w]."""
        patches = tokens[:, 1:].take_along_dim(self.chosen[..., None], 1)
        return torch.cat([tokens[:, :1], patches], 1)


def _telling(shown: Tensor, kept: int, rng: np.random.Generator) -> Tensor:
    """Numbers of ``kept`` patches of each picture, int64 [n,k]: those that show a phrase ([n,p,m]) before others."""
    order = torch.from_numpy(rng.random(shown.shape[:2], np.float32)) + shown.amax(2)
    return order.argsort(1, descending=True)[:, :kept].sort(1).values


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
    text = _encoded_texts(clip, tokens[distinct])
    logits = clip.logit_scale.exp() * image @ text.T
    pictures = F.one_hot(own, len(distinct)).float().T
    pictures = pictures / pictures.sum(dim=1, keepdim=True)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, pictures)) / 2
    return loss, float((logits.argmax(dim=1) == own).float().mean())


def _encoded_texts(clip: Any, tokens: Tensor) -> Tensor:
    """``clip.encode_text``, normalised, without the padding behind the longest text: half the time.

    Attention is causal, so what comes after a text's end changes nothing before it.
    """
    ends = tokens.argmax(1)  # the end token has the greatest number
    length = int(ends.max()) + 1
    x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), ends] @ clip.text_projection, dim=-1)


def _region_loss(clip: Any, patches: Tensor, phrases: Tensor, shown: Tensor, scale: Tensor) -> Tensor:
    """Binary cross entropy of every patch with every phrase.

    Args:
        clip: the model.
        patches: normalised features [n,p,d].
        phrases: tokens [k,context].
        shown: [n,p,k], 1 where a patch shows what the phrase says.
        scale: logarithm of the logits' scale, and their bias.
    """
    text = _encoded_texts(clip, phrases)
    return F.binary_cross_entropy_with_logits(scale[0].exp() * patches @ text.T + scale[1], shown)


def _chances(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chances to draw pictures with these labels: all classes alike, the hardest twice as often."""
    weights = np.where(np.arange(len(LABELS)) == LABELS.index(_HARDEST), 2.0, 1.0)
    chances: NDArray[np.float64] = (weights / np.maximum(np.bincount(labels, minlength=len(LABELS)), 1))[labels]
    shares: NDArray[np.float64] = chances / chances.sum()
    return shares


def _computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; where it does not, emulating it would take longer than float32."""
    return not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


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
        description="Train a small CLIP on captioned pictures of the synthetic world; a second call goes on where the "
        "first was stopped.",
    )
    p.add_argument("--stills", required=True, type=Path, metavar="DIR", help="what python -m vadclip.world.stills made")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    p.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"default {EPOCHS}")
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
    state = arguments.out.with_name(arguments.out.name + ".state")
    clip = train_clip(
        stills,
        epochs=arguments.epochs,
        batch=arguments.batch,
        lr=arguments.lr,
        seed=arguments.seed,
        state=state,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    save_clip(clip, arguments.out)
    state.unlink(missing_ok=True)
    print(f"CLIP in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
