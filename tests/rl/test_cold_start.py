"""Batches of a cold start: what a pass holds, and going on in the middle of one; who learns from what."""

import random
from itertools import islice

import pytest
import torch

from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from rl.cold_start import batches, make_batch, make_optimizers, train_on
from rl.transcript import Transcript


def transcripts(*lengths: int) -> list[Transcript]:
    return [Transcript(token_ids=(i,) * n, written=(True,) * n) for i, n in enumerate(lengths)]


def sizes(lengths: tuple[int, ...], tokens: int, count: int, skip: int = 0) -> list[list[int]]:
    """Which transcripts each of the first batches holds."""
    source = batches(
        transcripts(*lengths), tokens_per_batch=tokens, pad_id=99, rng=random.Random(0), skip=skip
    )
    return [sorted(batch.input_ids_BT[:, 0].tolist()) for batch in islice(source, count)]


@pytest.mark.timeout(20)
def test_lessons_that_fill_no_batch_are_one() -> None:
    assert sizes((3, 4, 5), 100, 3) == [[0, 1, 2]] * 3


def test_what_fills_no_batch_at_the_end_of_a_pass_is_left_out() -> None:
    for batch in sizes((4,) * 5, 8, 6):  # two batches of two a pass, one transcript left
        assert len(batch) == 2


def test_a_source_goes_on_where_another_stopped() -> None:
    whole = sizes((4, 5, 6, 3, 2, 4), 9, 8)
    assert sizes((4, 5, 6, 3, 2, 4), 9, 5, skip=3) == whole[3:]
    assert whole[0] != whole[3]


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="no demonstrations to train on"):
        sizes((), 100, 1)


def trained(*, indexer_every: int, indexer_scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights after two steps; indexer_scale: of its head weights before them, and so of its gradients."""
    torch.manual_seed(0)
    model = WorldsmithForCausalLM(tiny_config(16, index_topk=4, token_selector="dense"))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("indexer.weights_proj.weight"):
                weights.mul_(indexer_scale)
    optimizers = make_optimizers(
        model, learning_rate=1e-2, muon_learning_rate=0.0, indexer_learning_rate=1e-2
    )
    ids = torch.randint(16, (2, 12), generator=torch.Generator().manual_seed(1)).tolist()
    batch = make_batch([Transcript(token_ids=tuple(row), written=(True,) * 12) for row in ids], 0)
    steps = train_on(
        model,
        optimizers,
        iter([batch] * 2),
        steps=range(2),
        scale=lambda _: 1.0,
        indexer_every=indexer_every,
    )
    assert len(list(steps)) == 2
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_indexers_lessons_do_not_shrink_the_models_steps() -> None:
    alone, beside = trained(indexer_every=0, indexer_scale=1e4), trained(indexer_every=1, indexer_scale=1e4)
    for name, weights in alone.items():
        if ".indexer." not in name:
            assert torch.equal(weights, beside[name]), name
    moved = [name for name in alone if not torch.equal(alone[name], beside[name])]
    assert moved
