"""What a learner's step came to, from its micro-batches, and from those of all learners that share it."""

import torch
from accelerate import Accelerator


class StepMeans:
    """Weighted means, and maxima, by name; in the order in which they were first added."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._largest: dict[str, float] = {}

    def add(self, weight: float, **means: float) -> None:
        """Means over so many tokens or rows of a micro-batch."""
        for name, mean in means.items():
            total, weights = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = total + mean * weight, weights + weight

    def add_largest(self, **values: float) -> None:
        for name, value in values.items():
            self._largest[name] = max(value, self._largest.get(name, value))

    def over(self, accelerator: Accelerator) -> dict[str, float]:
        """Over all learners, which ask together and have added the same names; 0 for a mean of nothing."""
        own = [part for pair in self._sums.values() for part in pair] + list(self._largest.values())
        told = torch.tensor([own], dtype=torch.float64, device=accelerator.device)
        every = accelerator.gather(told)
        assert isinstance(every, torch.Tensor)
        split = 2 * len(self._sums)
        totals, weights = every[:, :split].sum(dim=0).view(-1, 2).unbind(dim=1)
        means = dict(zip(self._sums, (totals / weights.clamp(min=1)).tolist(), strict=True))
        return means | dict(zip(self._largest, every[:, split:].amax(dim=0).tolist(), strict=True))
