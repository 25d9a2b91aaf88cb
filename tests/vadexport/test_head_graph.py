from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tests.golden import LENGTHS, Golden
from vadclip import VadCLIP
from vadexport.head_graph import HeadSizes, head_graph
from vadrun.scoring import score_features


def weights_and_sizes(model: VadCLIP) -> tuple[dict[str, np.ndarray], HeadSizes]:
    config = model.config
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    return weights, HeadSizes(config.heads, config.window, config.mask_padding, config.temperature)


def session_of(model: VadCLIP) -> onnxruntime.InferenceSession:
    graph = head_graph(*weights_and_sizes(model))
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def score(
    session: onnxruntime.InferenceSession, features: np.ndarray, text: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return score_features(
        features,
        256,
        len(text),
        lambda chunk, lengths: session.run(None, {"features": chunk, "lengths": lengths, "text": text}),
    )


@pytest.mark.parametrize("n", LENGTHS)
def test_golden_logits(golden: Golden, n: int) -> None:
    model = golden.load()
    session = session_of(model)
    logits, alignment = score(session, golden[f"features_{n}"].numpy(), golden["text_features"].numpy())
    np.testing.assert_allclose(logits, golden[f"logits1_{n}"].numpy()[:, 0], atol=1e-4)
    np.testing.assert_allclose(alignment, golden[f"logits2_{n}"].numpy(), atol=1e-4)


@pytest.mark.parametrize("options", [{"mask_padding": True}, {"window": 100}, {"window": 300}, {"heads": 4}])
@pytest.mark.parametrize("n", [37, 300])
def test_options_give_pytorchs_scores(golden: Golden, options: dict[str, int], n: int) -> None:
    # A window that does not divide 256 leaves a remainder; one above it is global attention.
    model = golden.load(**options)
    features, text = golden[f"features_{n}"], golden["text_features"]
    logits, alignment = score(session_of(model), features.numpy(), text.numpy())
    with torch.inference_mode():
        expected = model.score(features, text)
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(alignment, expected[1].numpy(), atol=1e-4)


def test_batch_and_class_count_are_dynamic(ucf: Golden) -> None:
    session = session_of(ucf.load())
    features = ucf["batch_features"].numpy()
    lengths = ucf["batch_lengths"].numpy().astype(np.int64)
    text = ucf["text_features"].numpy()
    logits, alignment = session.run(None, {"features": features, "lengths": lengths, "text": text})
    for row in range(len(features)):
        one = session.run(
            None, {"features": features[row : row + 1], "lengths": lengths[row : row + 1], "text": text[:5]}
        )
        np.testing.assert_allclose(one[0][0], logits[row], atol=1e-5)
        np.testing.assert_allclose(one[1][0], alignment[row, :, :5], atol=1e-4)


def test_masks_are_finite_and_the_head_is_float32(golden: Golden) -> None:
    graph = head_graph(*weights_and_sizes(golden.load()))
    for constant in graph.graph.initializer:
        value = numpy_helper.to_array(constant)
        assert np.isfinite(value).all(), constant.name
        assert value.dtype in (np.float32, np.int64), constant.name
    assert "Cast" not in {node.op_type for node in graph.graph.node} - {"Cast"}
    assert not {node.op_type for node in graph.graph.node} & {"Shape", "Slice", "Expand", "ConstantOfShape"}
