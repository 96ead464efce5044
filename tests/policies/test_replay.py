"""Route records and the trainer's tensor."""

import numpy as np
import pytest
import torch

from policies.replay import changed_share, pad_routes, record_routes, route_dtype


def test_records_are_placed_at_their_columns_and_gaps_are_live() -> None:
    first = np.array([[[1, 2]], [[3, 0]], [[255, 255]]], np.uint8)  # the last token was never read
    second = np.array([[[4, 5]]], np.uint8)
    routes = pad_routes([first, second, None], num_columns=4, offsets=[0, 2, 0])
    assert routes.shape == (3, 4, 1, 2)
    assert routes[0, :, 0].tolist() == [[1, 2], [3, 0], [-1, -1], [-1, -1]]
    assert routes[1, :, 0].tolist() == [[-1, -1], [-1, -1], [4, 5], [-1, -1]]
    assert (routes[2] == -1).all()


def test_many_experts_need_a_wider_type() -> None:
    assert route_dtype(255) == np.uint8  # ids 0 to 254, and 255 for "not recorded"
    assert route_dtype(256) == np.uint16
    live = torch.tensor([[[255, 0]], [[-1, -1]]])
    record = record_routes(live, num_experts=256)
    assert record.tolist() == [[[255, 0]], [[65535, 65535]]]
    assert torch.equal(pad_routes([record], num_columns=2, offsets=[0])[0], live)


def test_changed_share_ignores_order_and_missing_tokens() -> None:
    recorded = np.array([[[1, 2]], [[3, 4]], [[255, 255]]], np.uint8)
    live = np.array([[[2, 1]], [[3, 5]], [[6, 7]]], np.uint8)
    assert changed_share(recorded, live) == pytest.approx(1 / 4)


def test_records_that_do_not_fit_are_refused() -> None:
    record = np.zeros((3, 1, 2), np.uint8)
    with pytest.raises(ValueError, match="3 recorded tokens at column 2 exceed 4 columns"):
        pad_routes([record], num_columns=4, offsets=[2])
    with pytest.raises(ValueError, match="share one"):
        pad_routes([record, np.zeros((3, 2, 2), np.uint8)], num_columns=4, offsets=[0, 0])
