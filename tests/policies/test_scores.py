"""Log-probabilities of targets, block by block, against log_softmax over the whole."""

import pytest
import torch

from policies.model import scores
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradients_are_those_of_the_whole_softmax_in_float64(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "BLOCK_FLOATS", 3 * 11)  # blocks of three rows
    torch.manual_seed(0)
    hidden = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (8,))
    up = torch.randn(8, dtype=torch.float64)
    logps, entropy = scores.target_logps(hidden, weight, targets, temperature)
    whole = (hidden @ weight.t() / temperature).log_softmax(-1)
    expected = whole.gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(logps, expected, rtol=1e-12, atol=0)
    assert torch.allclose(entropy, -(whole.exp() * whole).sum(-1), rtol=1e-12, atol=0)
    assert not entropy.requires_grad
    ours = torch.autograd.grad((logps * up).sum(), (hidden, weight))
    theirs = torch.autograd.grad((expected * up).sum(), (hidden, weight))
    for got, wanted in zip(ours, theirs, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-14)


def test_a_model_scores_targets_as_its_logits_do_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = WorldsmithForCausalLM(tiny_config(64, num_hidden_layers=2, index_topk=4))
    ids = torch.randint(0, 64, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0  # padded on the right
    mask[1, :2] = 0  # and on the left
    targets = torch.nn.functional.pad(ids.masked_fill(mask == 0, -1)[:, 1:], (0, 1), value=-1)
    targets[2, :3] = -1
    out = model(ids, mask, targets=targets, temperature=0.5)
    assert out.logits is None
    whole = (model(ids, mask).logits / 0.5).log_softmax(-1)
    expected = whole.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    scored = (targets >= 0) & (mask == 1)
    assert torch.allclose(out.target_logps[scored], expected[scored], atol=1e-5)
    assert torch.allclose(out.entropy[scored], -(whole.exp() * whole).sum(-1)[scored], atol=1e-5)
    assert (out.target_logps[~scored] == 0).all()
    assert (out.entropy[~scored] == 0).all()
    gradients = []
    for loss in (out.target_logps.sum(), expected[scored].sum()):
        model.zero_grad()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, got in gradients[0].items():
        assert torch.allclose(got, gradients[1][name], rtol=1e-4, atol=1e-5), name
