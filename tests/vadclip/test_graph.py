import math

import torch

from vadclip.graph import DistanceAdjacency, GraphConvolution, feature_similarity, position_distance


def test_similarity_by_hand() -> None:
    # Cosines: 0-1 is 0.8 and stays, 0-2 is 0.6 and becomes 0, 1-2 is 0 and stays; position 3 is padding.
    x = torch.tensor([[[2.0, 0.0], [4.0, 3.0], [3.0, -4.0], [1.0, 0.0]]])
    valid = torch.tensor([[True, True, True, False]])
    one, high, zero = math.e, math.exp(0.8), 1.0
    rows = [[one, high, zero, 0.0], [high, one, zero, 0.0], [zero, zero, one, 0.0]]
    expected = torch.tensor([[weight / sum(row) for weight in row] for row in rows] + [[0.0] * 4])
    torch.testing.assert_close(feature_similarity(x, valid)[0], expected, atol=1e-6, rtol=0)


def test_similarity_threshold_is_strict_and_negative_edges_are_zero() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.7, math.sqrt(1 - 0.49)], [-1.0, 0.0]]])
    edges = feature_similarity(x, torch.ones(1, 3, dtype=torch.bool))[0]
    # Equal weights of the two edges that are not the diagonal: 0.7 (up to rounding) or below, and -1.
    assert abs(edges[2, 0] - edges[2, 1]) < 1e-7


def test_similarity_of_zero_vectors_and_empty_videos_is_finite() -> None:
    edges = feature_similarity(torch.zeros(2, 4, 3), torch.arange(4) < torch.tensor([[2], [0]]))
    torch.testing.assert_close(edges[0, 0], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert torch.equal(edges[1], torch.zeros(4, 4))


def test_distance() -> None:
    adjacency = position_distance(256)
    for i, j in ((0, 0), (3, 5), (200, 0)):
        assert math.isclose(adjacency[i, j], math.exp(-abs(i - j) / math.e), rel_tol=1e-5)
    module = DistanceAdjacency(4)
    valid = torch.arange(4) < torch.tensor([[2], [4]])
    masked = module(valid)
    assert torch.equal(masked[1], module())
    assert torch.equal(masked[0, :, :2], module()[:, :2]) and not masked[0, :, 2:].any()


def test_convolution_layers() -> None:
    torch.manual_seed(0)
    x, adjacency = torch.randn(2, 6, 4), torch.rand(2, 6, 6)
    narrow, same = GraphConvolution(4, 3), GraphConvolution(4, 4)
    assert set(narrow.state_dict()) == {"weight", "residual.weight", "residual.bias"}
    assert set(same.state_dict()) == {"weight"}
    torch.testing.assert_close(same(x, adjacency), adjacency @ x @ same.weight + x)
    residual = narrow.residual(x.transpose(1, 2)).transpose(1, 2)
    assert narrow(x, adjacency).shape == (2, 6, 3)
    torch.testing.assert_close(narrow(x, adjacency) - residual, adjacency @ x @ narrow.weight, atol=1e-5, rtol=0)
