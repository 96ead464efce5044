"""Packing real tokens and back."""

import torch

from policies.model.packing import pack


def test_masks_on_either_side_close_ranks_and_count_from_zero() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]])
    batch = pack(2, 4, mask, torch.device("cpu"))
    assert batch.length == 3
    assert batch.positions.tolist() == [0, 1, 0, 1, 2]
    ids = torch.tensor([[9, 1, 2, 9], [3, 4, 5, 9]])
    packed = batch.from_source(ids)
    assert packed.tolist() == [1, 2, 3, 4, 5]
    rows = batch.to_rows(packed[:, None].double()).squeeze(-1)
    assert rows.tolist() == [[1, 2, 2], [3, 4, 5]]  # padding repeats the last token
    assert batch.to_packed(rows).tolist() == [1, 2, 3, 4, 5]
    assert batch.to_source(packed, 4, fill=-1).tolist() == [[-1, 1, 2, -1], [3, 4, 5, -1]]


def test_shorter_rows_come_first_and_go_back_to_their_places() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]])
    batch = pack(3, 3, mask, torch.device("cpu"))
    ids = torch.tensor([[1, 2, 3], [4, 0, 0], [0, 5, 6]])
    packed = batch.from_source(ids)
    assert packed.tolist() == [4, 5, 6, 1, 2, 3]
    assert batch.positions.tolist() == [0, 0, 1, 0, 1, 2]
    assert batch.lengths == [1, 2, 3]
    assert torch.equal(batch.to_source(packed, 3), ids)


def test_a_row_without_tokens_is_allowed() -> None:
    batch = pack(2, 2, torch.tensor([[0, 0], [1, 1]]), torch.device("cpu"))
    assert batch.positions.tolist() == [0, 1]
    assert batch.to_rows(torch.tensor([[7.0], [8.0]])).shape == (2, 2, 1)


def test_gradient_reaches_each_packed_token_once() -> None:
    batch = pack(2, 3, torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.device("cpu"))
    packed = torch.arange(5.0).requires_grad_()
    batch.to_packed(batch.to_rows(packed[:, None])).pow(2).sum().backward()
    assert packed.grad is not None
    assert packed.grad.tolist() == [0, 2, 4, 6, 8]
