import pytest
import torch
from torch import nn

from vadclip.temporal import MASKED, Attention, LocalModule, quick_gelu, window_mask


@pytest.mark.parametrize(
    ("positions", "window", "blocks"),
    [(256, 8, [8] * 32), (256, 64, [64] * 4), (20, 8, [8, 12]), (7, 7, [7]), (7, 9, [7]), (3, 1, [1, 1, 1])],
)
def test_windows_are_disjoint_and_the_last_takes_the_remainder(positions: int, window: int, blocks: list[int]) -> None:
    block = torch.tensor([index for index, size in enumerate(blocks) for _ in range(size)])
    expected = (block[:, None] == block[None, :]).float()
    mask = window_mask(positions, window)
    assert torch.equal(mask == 0, expected == 1)
    assert torch.equal(mask[expected == 0], torch.full_like(mask[expected == 0], MASKED))


def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, mask = torch.randn(3, 24, 32), window_mask(24, 8)
    expected, _ = theirs(x, x, x, attn_mask=mask == MASKED)
    torch.testing.assert_close(ours(x, mask), expected, atol=1e-6, rtol=0)


def test_nothing_crosses_a_window() -> None:
    torch.manual_seed(0)
    module = LocalModule(16, layers=2, heads=1, positions=24, window=8)
    x = torch.randn(1, 24, 16)
    changed = x.clone()
    changed[:, 8:16] += 1
    moved = (module(changed) - module(x)).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False] * 8 + [True] * 8 + [False] * 8


def test_masked_keys_do_not_count_and_an_empty_window_is_finite() -> None:
    torch.manual_seed(0)
    module = LocalModule(16, layers=2, heads=1, positions=24, window=8)
    x = torch.randn(2, 24, 16)
    valid = torch.arange(24) < torch.tensor([[11], [0]])
    changed = x.masked_fill(~valid[:, :, None], 1e3)
    before, after = module(x, valid), module(changed, valid)
    assert torch.equal(before[valid], after[valid])
    assert before.isfinite().all() and after.isfinite().all()
    assert not torch.equal(module(x)[valid], module(changed)[valid])


def test_quick_gelu() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))
