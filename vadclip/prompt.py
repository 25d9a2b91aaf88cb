"""The two prompts of the A-branch: learned tokens around a label, and the anomalous part of the video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from vadclip.config import ModelConfig
from vadrun.errors import UserError

HAND_CRAFTED = "a video of {}"
"""The hand-crafted prompt; the paper does not tell its own."""


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """OpenAI's byte-pair tokenizer: [start, label, end, 0, ...] with the end token the largest id."""
    return SimpleTokenizer()


@dataclass(frozen=True)
class PromptTokens:
    """Where the words of m prompts are: between and around them stand learned vectors (Eq. 5).

    Attributes:
        ids: int64 [m,context], token ids; 0 where the vector is a learned one.
        is_word: bool [m,context], true where the vector is a token's embedding.
        end: int64 [m], position of the end token, whose output is the text feature.
    """

    ids: Tensor
    is_word: Tensor
    end: Tensor

    def to(self, device: torch.device) -> PromptTokens:
        """The same on another device."""
        return PromptTokens(self.ids.to(device), self.is_word.to(device), self.end.to(device))


def tokenize(labels: Sequence[str], config: ModelConfig) -> PromptTokens:
    """Lay out ``[start, prefix learned, label, postfix learned, end, learned ...]`` for every label.

    A design without a learned prompt has ``[start, label, end, 0 ...]``, with the words by hand before the label.

    Raises:
        UserError: a label has no tokens, or more than fit beside the learned ones in CLIP's context.
    """
    ids = torch.zeros(len(labels), config.clip.context, dtype=torch.int64)
    is_word = torch.zeros_like(ids, dtype=torch.bool)
    end = torch.zeros(len(labels), dtype=torch.int64)
    learned = config.design.prompt == "learned"
    prefix, postfix = (config.prompt_prefix, config.prompt_postfix) if learned else (0, 0)
    for row, label in enumerate(labels):
        words: list[int] = tokenizer().encode(label)
        if words and config.design.prompt == "hand":
            words = tokenizer().encode(HAND_CRAFTED.format(label))
        if not words:
            raise UserError(f"label {label!r} is empty for CLIP's tokenizer: name the class in words")
        if len(words) > config.label_tokens:
            raise UserError(
                f"label {label!r} has {len(words)} tokens, but only {config.label_tokens} fit between"
                f" {prefix} + {postfix} learned ones: shorten it"
            )
        first = 1 + prefix
        last = first + len(words) + postfix
        ids[row, 0] = tokenizer().sot_token_id
        ids[row, first : first + len(words)] = torch.tensor(words)
        ids[row, last] = tokenizer().eot_token_id
        is_word[row, 0] = is_word[row, first : first + len(words)] = is_word[row, last] = True
        end[row] = last
    if not learned:
        is_word[:] = True
    return PromptTokens(ids, is_word, end)


def encode_prompts(clip: Any, learned: Tensor, tokens: PromptTokens) -> Tensor:
    """Text features of prompts, through CLIP's text transformer (Eq. 5).

    Args:
        clip: an ``open_clip.model.CLIP``.
        learned: [context, text width], one vector for each position, shared by all labels.
        tokens: the layout of m prompts, on the same device.

    Returns:
        [m,d], not normalised.
    """
    x = torch.where(tokens.is_word[:, :, None], clip.token_embedding(tokens.ids), learned)
    x = clip.transformer(x + clip.positional_embedding, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)
    features: Tensor = x[torch.arange(len(x), device=x.device), tokens.end] @ clip.text_projection
    return features


def visual_prompt(logits: Tensor, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """V (Eq. 6), the unit vector along the video's features weighted by anomaly.

    As in the released models the weights are the logits, before the sigmoid that the paper has.

    Args:
        logits: [B,T] of the C-branch.
        x: [B,T,d].
        valid: bool [B,T]; positions where it is false do not count. None: padding counts, as released.

    Returns:
        [B,d]; 0 where no position is valid.
    """
    if valid is not None:
        logits = logits.masked_fill(~valid, 0.0)
    return F.normalize((logits[:, None, :] @ x).squeeze(1), dim=-1)


def instance_text(text: Tensor, visual: Tensor, ffn: Callable[[Tensor], Tensor]) -> Tensor:
    """T (Eq. 7) of each video: ``U + FFN(U)`` with ``U = t + V``, as released; the paper adds t, not U.

    Args:
        text: t [m,d].
        visual: V [B,d].
        ffn: the A-branch's feed-forward network.

    Returns:
        [B,m,d].
    """
    u = text + visual[:, None, :]
    return u + ffn(u)
