import open_clip
import pytest
import torch

from tests.golden import Golden
from vadclip import VadCLIP
from vadclip.config import ModelConfig
from vadclip.prompt import encode_prompts, instance_text, tokenize, tokenizer, visual_prompt
from vadrun.errors import UserError

CONFIG = ModelConfig(embed_dim=512, window=8, layers=2, labels=("normal", "fire"))
START, END = 49406, 49407


@pytest.fixture(scope="module")
def model(ucf: Golden) -> VadCLIP:
    return ucf.load()


def test_tokenizer_gives_openai_ids() -> None:
    # The ids in OpenAI's notebook and tests.
    assert tokenizer().encode("a photo of a dog") == [320, 1125, 539, 320, 1929]
    ids = open_clip.tokenize(["a photo of a dog", "normal", "Road  Accidents "])
    assert ids.argmax(dim=1).tolist() == [6, 2, 3]
    assert (ids[torch.arange(3), ids.argmax(dim=1)] == END).all()


def test_layout() -> None:
    labels = ["normal", "car accident"]
    tokens = tokenize(labels, CONFIG)
    for row, label in enumerate(labels):
        words = tokenizer().encode(label)
        end = 1 + 10 + len(words) + 10
        # As released: position 10 + ind + 10, with ind where the end token of the plain label is.
        assert end == 10 + int(open_clip.tokenize([label]).argmax()) + 10
        expected = [0] * 77
        expected[0], expected[11 : 11 + len(words)], expected[end] = START, words, END
        assert tokens.ids[row].tolist() == expected
        assert tokens.is_word[row].tolist() == [value != 0 for value in expected]
        assert tokens.end[row] == end


def test_label_as_long_as_fits_and_one_longer() -> None:
    tokens = tokenize([" ".join(["fire"] * 55)], CONFIG)
    assert tokens.end.tolist() == [76]
    with pytest.raises(UserError, match=r"has 56 tokens, but only 55 fit between 10 \+ 10 learned ones: shorten"):
        tokenize(["normal", " ".join(["fire"] * 56)], CONFIG)


def test_label_without_tokens() -> None:
    with pytest.raises(UserError, match="label ' ' is empty"):
        tokenize([" "], CONFIG)


def test_no_labels_give_no_features(model: VadCLIP) -> None:
    assert model.encode_text([]).shape == (0, 64)


@torch.no_grad()
def test_labels_are_encoded_independently(model: VadCLIP) -> None:
    together = model.encode_text(["normal", "fighting", "roadAccidents"])
    alone = torch.cat([model.encode_text([label]) for label in ("normal", "fighting", "roadAccidents")])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


@torch.no_grad()
def test_learned_vectors_are_taken_by_absolute_position(model: VadCLIP) -> None:
    tokens = tokenize(["normal"], model.config)
    learned = model.text_prompt_embeddings.weight.clone()
    before = encode_prompts(model.clipmodel, learned, tokens)
    for position, matters in {0: False, 1: True, 10: True, 11: False, 12: True, 21: True, 22: False, 40: False}.items():
        changed = learned.clone()
        changed[position] = 1.0
        after = encode_prompts(model.clipmodel, changed, tokens)
        assert ((after - before).abs().max() > 1e-4) == matters, position


def test_visual_prompt() -> None:
    x = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    logits = torch.tensor([[1.0, -2.0, 1.0]])
    torch.testing.assert_close(visual_prompt(logits, x), torch.tensor([[12.0, 5.0]]) / 13)
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(visual_prompt(logits, x, valid), torch.tensor([[0.6, -0.8]]))
    torch.testing.assert_close(visual_prompt(logits, x, torch.zeros_like(valid)), torch.zeros(1, 2))


def test_instance_text_keeps_the_visual_prompt_in_the_residual() -> None:
    text, visual = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.5, 0.5], [0.0, -1.0]])
    got = instance_text(text, visual, lambda u: 2 * u)
    expected = torch.tensor([[[1.5, 0.5], [0.5, 1.5]], [[1.0, -1.0], [0.0, 0.0]]]) * 3
    torch.testing.assert_close(got, expected)
