"""An actor where the run leaves orders for each of its learners, and the first learner its answers."""

import asyncio
from collections.abc import Sequence
from typing import Any


class Board:
    """Orders are of `rl.learner_process`; only the processes that read them import it."""

    def __init__(self, num_learners: int) -> None:
        self._orders: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(num_learners)]
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._begun: set[int] = set()
        self._owed = 0

    async def begin(self, rank: int) -> None:
        """Raises where Ray Train has started learners once more, which would begin at the first weights."""
        if rank in self._begun:
            raise RuntimeError(f"learner {rank} was started twice")
        self._begun.add(rank)

    async def put(self, orders: Sequence[Any]) -> None:
        """One for each learner; together they are owed one answer."""
        self._owed += 1
        for queue, order in zip(self._orders, orders, strict=True):
            queue.put_nowait(order)

    async def take(self, rank: int) -> Any:
        return await self._orders[rank].get()

    async def answer(self, rank: int, answer: list[Any]) -> None:
        """answer: a reference to it, in a list, so that it does not pass through here. Raises unless it comes
        from the first learner and is owed.
        """
        if rank != 0 or not self._owed:
            raise RuntimeError(f"learner {rank} answers, {self._owed} answer(s) are owed by learner 0")
        self._owed -= 1
        self._answers.put_nowait(answer)

    async def answered(self) -> list[Any]:
        return await self._answers.get()
