"""The three losses against the released code's values and, for the options, against the equations."""

import pytest
import torch
from torch import Tensor

from tests.golden import Golden
from vadclip.losses import (
    Losses,
    alignment_loss,
    classification_loss,
    contrastive_loss,
    top_k_mean,
    vadclip_losses,
)

WEIGHTS = {"ucf": 1e-1, "xd": 1e-4}


def golden_losses(golden: Golden) -> tuple[torch.nn.Module, Losses]:
    model = golden.load()
    lengths = golden["batch_lengths"]
    text = model.encode_text(model.config.labels)
    logits, alignment = model(golden["batch_features"], lengths, text)
    weight = WEIGHTS[golden.dataset]
    return model, vadclip_losses(logits, alignment, text, golden["batch_targets"], lengths, contrast_weight=weight)


def test_losses_are_the_released_ones(golden: Golden) -> None:
    _, losses = golden_losses(golden)
    for name, value in (("bce", losses.bce), ("nce", losses.nce), ("cts", losses.contrast)):
        assert value.item() == pytest.approx(golden[f"loss_{name}"].item(), rel=1e-5), name


def test_gradients_are_the_released_ones(golden: Golden) -> None:
    model, losses = golden_losses(golden)
    losses.total.backward()  # type: ignore[no-untyped-call]
    parameters = dict(model.named_parameters())
    names = [name.removeprefix("grad_norm/") for name in golden.arrays if name.startswith("grad_norm/")]
    assert names
    for name in names:
        gradient = parameters[name].grad
        assert gradient is not None, name
        assert gradient.norm().item() == pytest.approx(golden[f"grad_norm/{name}"].item(), rel=1e-3), name
    assert all(value.grad is None for name, value in parameters.items() if name.startswith("clipmodel."))


@pytest.mark.parametrize("divisor", [1, 16])
def test_top_k_mean_is_the_loop_over_videos(divisor: int) -> None:
    values = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1, 15, 16, 32, 40])

    def one(row: Tensor, length: int) -> Tensor:
        count = min(length // divisor + 1, length)
        return row[:length].topk(count, dim=0).values.mean(dim=0)

    expected = torch.stack([one(row, int(length)) for row, length in zip(values, lengths, strict=True)])
    torch.testing.assert_close(top_k_mean(values, lengths, divisor), expected)
    torch.testing.assert_close(top_k_mean(values[:, :, 0], lengths, divisor), expected[:, 0])


def test_padding_gets_no_gradient_and_no_nan() -> None:
    values = torch.full((2, 20), 3.0, requires_grad=True)
    padded = torch.where(torch.arange(20) < 4, values, torch.nan)
    top_k_mean(padded, torch.tensor([4, 1])).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert values.grad.sum() == 2
    assert not values.grad[:, 4:].any()


def test_contrast_of_the_paper_counts_positive_cosines_only() -> None:
    text = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [1.0, 1.0]])
    half = 0.5**0.5
    assert contrastive_loss(text).item() == pytest.approx((0 + 1 + half) / 3)
    assert contrastive_loss(text, "sum-positive").item() == pytest.approx(half)


def test_temperature_divides_the_similarities() -> None:
    alignment, text = torch.randn(2, 8, 3), torch.randn(3, 4)
    targets, lengths = torch.eye(3)[:2], torch.tensor([8, 5])
    options = {"contrast_weight": 0.1}
    halved = vadclip_losses(torch.zeros(2, 8), alignment / 2, text, targets, lengths, **options)
    other = vadclip_losses(torch.zeros(2, 8), alignment, text, targets, lengths, temperature=2.0, **options)
    torch.testing.assert_close(halved.nce, other.nce)
    assert halved.total.item() == pytest.approx((halved.bce + halved.nce + halved.contrast).item())


def test_a_branch_alone_minimises_its_own_terms() -> None:
    losses = Losses(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0))
    assert [losses.of(branches).item() for branches in ("both", "confidence", "alignment")] == [111, 1, 110]


def test_both_branches_take_the_divisor() -> None:
    logits, alignment = torch.randn(2, 8), torch.randn(2, 8, 3)
    targets, lengths = torch.eye(3)[:2], torch.tensor([8, 5])
    losses = vadclip_losses(logits, alignment, torch.randn(3, 4), targets, lengths, contrast_weight=0.1, divisor=2)
    torch.testing.assert_close(losses.bce, classification_loss(logits, targets, lengths, 2))
    torch.testing.assert_close(losses.nce, alignment_loss(alignment, targets, lengths, 2))
    assert losses.bce.item() != pytest.approx(classification_loss(logits, targets, lengths).item())
    assert losses.nce.item() != pytest.approx(alignment_loss(alignment, targets, lengths).item())


def test_the_form_of_the_contrast_is_the_callers() -> None:
    text = torch.randn(4, 3)
    for form in ("mean-abs", "sum-positive"):
        losses = vadclip_losses(
            torch.zeros(2, 8),
            torch.zeros(2, 8, 4),
            text,
            torch.eye(4)[:2],
            torch.tensor([8, 5]),
            contrast_weight=0.5,
            contrast=form,
        )
        assert losses.contrast.item() == pytest.approx(0.5 * contrastive_loss(text, form).item())
    assert contrastive_loss(text).item() != pytest.approx(contrastive_loss(text, "sum-positive").item())
