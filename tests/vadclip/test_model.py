from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.golden import LENGTHS, Golden
from vadclip import VadCLIP
from vadrun.errors import UserError

LOGITS, PROBABILITY = 1e-4, 2e-5  # what may differ from the released code, absolute


@pytest.fixture(scope="module")
def model(golden: Golden) -> VadCLIP:
    return golden.load()


@pytest.fixture(scope="module")
def text(model: VadCLIP) -> Tensor:
    with torch.no_grad():
        return model.encode_text(model.config.labels)


def close(got: Tensor, expected: Tensor, limit: float) -> None:
    torch.testing.assert_close(got, expected, atol=limit, rtol=0)


@torch.no_grad()
def test_image_features(golden: Golden, model: VadCLIP) -> None:
    close(model.encode_image(golden["images"]), golden["image_features"], LOGITS)


def test_text_features(golden: Golden, text: Tensor) -> None:
    close(text, golden["text_features"], LOGITS)


@pytest.mark.parametrize("n", LENGTHS)
def test_scores(golden: Golden, model: VadCLIP, text: Tensor, n: int) -> None:
    logits, alignment = model.score(golden[f"features_{n}"], text)
    assert not logits.requires_grad
    close(logits[:, None], golden[f"logits1_{n}"], LOGITS)
    close(alignment, golden[f"logits2_{n}"], LOGITS)
    close(logits.sigmoid(), golden[f"prob1_{n}"], PROBABILITY)
    close(1 - alignment.softmax(dim=1)[:, 0], golden[f"prob2_{n}"], PROBABILITY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_on_cuda(golden: Golden) -> None:
    model = golden.load().cuda()
    with torch.no_grad():
        text = model.encode_text(model.config.labels)
    logits, alignment = model.score(golden["features_300"], text)
    assert logits.is_cuda
    close(logits[:, None].cpu(), golden["logits1_300"], LOGITS)
    close(alignment.cpu(), golden["logits2_300"], LOGITS)


def test_model_has_exactly_the_authors_keys(golden: Golden, model: VadCLIP) -> None:
    assert set(model.state_dict()) == set(golden.weights)
    with torch.device("meta"):
        fresh = VadCLIP(model.config)
    fresh.load_state_dict(golden.weights, strict=True, assign=True)


def test_fresh_model_matches_a_loaded_one_when_given_its_weights(golden: Golden, text: Tensor) -> None:
    fresh = VadCLIP(golden.load().config).eval()
    fresh.load_state_dict(golden.weights)
    with torch.no_grad():
        close(fresh.encode_text(fresh.config.labels), text, 1e-6)
    close(fresh.score(golden["features_37"], text)[0][:, None], golden["logits1_37"], LOGITS)


def test_nothing_is_left_on_the_meta_device(model: VadCLIP) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert [name for name, value in tensors.items() if value.is_meta] == []
    mask = model.clipmodel.attn_mask
    causal = torch.ones(77, 77, dtype=torch.bool).tril()
    assert torch.equal(mask == 0, causal) and mask[~causal].isneginf().all()


@pytest.mark.parametrize(("n", "chunks"), [(0, 0), (1, 1), (255, 1), (256, 1), (257, 2), (512, 2)])
def test_chunks(golden: Golden, model: VadCLIP, text: Tensor, n: int, chunks: int) -> None:
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logits, alignment = model.score(golden["features_600"][:n], text)
    hook.remove()
    assert sum(seen) == chunks
    assert logits.shape == (n,) and alignment.shape == (n, len(text))


def test_chunks_are_scored_on_their_own(golden: Golden, model: VadCLIP, text: Tensor) -> None:
    features = golden["features_600"]
    whole, parts = (
        model.score(features, text),
        [model.score(features[start : start + 256], text) for start in (0, 256, 512)],
    )
    close(whole[0], torch.cat([part[0] for part in parts]), LOGITS)
    close(whole[1], torch.cat([part[1] for part in parts]), LOGITS)


def test_long_video_is_scored_in_groups_of_chunks(
    golden: Golden, model: VadCLIP, text: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vadclip.model._CHUNKS_AT_ONCE", 2)
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logits, alignment = model.score(golden["features_600"], text)
    hook.remove()
    assert seen == [2, 1]
    close(logits[:, None], golden["logits1_600"], LOGITS)
    close(alignment, golden["logits2_600"], LOGITS)


def test_score_refuses_other_widths(model: VadCLIP, text: Tensor) -> None:
    for shape in ((3, 63), (64,), (1, 3, 64)):
        with pytest.raises(UserError, match=r"features have shape .* takes \[n, 64\]"):
            model.score(torch.zeros(shape), text)


@torch.no_grad()
def test_videos_of_a_batch_do_not_touch_each_other(golden: Golden, model: VadCLIP, text: Tensor) -> None:
    features, lengths = golden["batch_features"], golden["batch_lengths"]
    x = model.video_features(features, lengths)
    logits, alignment = model(features, lengths, text)
    assert logits.shape == (4, 256) and alignment.shape == (4, 256, len(text))
    for row in range(len(features)):
        one = slice(row, row + 1)
        close(x[one], model.video_features(features[one], lengths[one]), LOGITS)
        alone = model(features[one], lengths[one], text)
        close(logits[one], alone[0], LOGITS)
        close(alignment[one], alone[1], LOGITS)
    assert (logits[0] - logits[1]).abs().max() > 1  # the videos do differ


def padded(features: Tensor, value: float) -> Tensor:
    chunk = torch.full((1, 256, features.shape[1]), value)
    chunk[0, : len(features)] = features
    return chunk


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 37, 255])
def test_masked_padding_does_not_count(golden: Golden, model: VadCLIP, text: Tensor, n: int) -> None:
    masked = golden.load(mask_padding=True)
    features, length = golden[f"features_{n}"], torch.tensor([n])
    zeros, noise = padded(features, 0.0), padded(features, 50.0)
    for got, expected in zip(masked(zeros, length, text), masked(noise, length, text), strict=True):
        assert torch.equal(got[:, :n], expected[:, :n])
    # Without the mask padding does count, as in the released models.
    for got, expected in zip(model(zeros, length, text), model(noise, length, text), strict=True):
        assert (got[:, :n] - expected[:, :n]).abs().max() > 1e-3


@torch.no_grad()
def test_masked_padding_is_as_if_the_video_ended_there(golden: Golden, text: Tensor) -> None:
    masked = golden.load(mask_padding=True)
    n = masked.config.window  # windows are then the same in both, and padding would weigh the most
    short = VadCLIP(replace(masked.config, positions=n, mask_padding=False), clip=masked.clipmodel).eval()
    position = "frame_position_embeddings.weight"
    short.load_state_dict({**masked.state_dict(), position: golden.weights[position][:n]})
    features = golden["features_255"][:n]
    logits, alignment = masked.score(features, text)
    expected_logits, expected_alignment = short(features[None], torch.tensor([n]), text)
    close(logits, expected_logits[0], LOGITS)
    close(alignment, expected_alignment[0], 1e-5)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_empty_videos_in_a_batch_are_finite_forward_and_backward(golden: Golden, mask_padding: bool) -> None:
    model = golden.load(mask_padding=mask_padding)
    features = golden["batch_features"].clone()
    features[1] = 0
    lengths = golden["batch_lengths"].clone()
    lengths[1] = 0
    text = model.encode_text(model.config.labels)
    logits, alignment = model(features, lengths, text)
    assert logits.isfinite().all() and alignment.isfinite().all()
    (logits.sum() + alignment.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_only_the_new_parts_are_trained(golden: Golden) -> None:
    model = golden.load()
    text = model.encode_text(model.config.labels)
    logits, alignment = model(golden["batch_features"], golden["batch_lengths"], text)
    (logits.sigmoid().mean() + alignment.softmax(dim=-1)[..., 0].mean()).backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    heads = {name for name in golden.weights if not name.startswith("clipmodel.")}
    assert trained == heads - {"disAdj.sigma"}
    assert all(value.grad is None for value in model.clipmodel.parameters())


def test_freeze_clip(golden: Golden) -> None:
    model = golden.load()
    model.requires_grad_(True)
    model.freeze_clip()
    assert not any(value.requires_grad for value in model.clipmodel.parameters())
    assert model.gc1.weight.requires_grad
