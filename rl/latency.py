"""How long tools take: a heavy-tailed distribution, drawn by seed, for rehearsals and for the simulator."""

import math
import random

from pydantic import BaseModel, ConfigDict, Field

from envs.task import stable_seed


class Latency(BaseModel):
    """A tool call takes exp(N(ln median_s, sigma)) seconds, at most `longest_s`.

    sigma 1.5 puts the 99th percentile at 33 medians; 0 makes every call take the median.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    median_s: float = Field(default=0.0, ge=0)
    """0: nothing is added to what the tools take by themselves."""
    sigma: float = Field(default=1.0, ge=0)
    longest_s: float = Field(default=600.0, gt=0)

    def draw(self, seed: int, turn: int) -> float:
        """Seconds of this episode's call; of (seed, turn) alone, so that any schedule meets the same ones."""
        if self.median_s == 0:
            return 0.0
        rng = random.Random(stable_seed(seed, "tool latency", turn))
        return min(self.longest_s, self.median_s * math.exp(rng.gauss(0.0, self.sigma)))
