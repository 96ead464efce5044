"""A whole domain as one gymnasium environment: `gymnasium.make("worldsmith/Trip-v0", level=2)`.

Each `reset` opens a task. Without a corpus it is made on the spot from the seed and has passed every gate, in
some 50 ms; with `corpus=DIR` it is one of that directory. The same seed opens the same task, on any machine.
"""

import difflib
from functools import lru_cache
from typing import Any

import gymnasium

from envs.episode import ACTION_SPACE, OBSERVATION_SPACE, TaskEnv, observation_text, step_with
from envs.task import stable_seed
from synthesis.certificate import certify_candidate
from synthesis.corpus import CorpusTask, read_corpus
from synthesis.general import DOMAINS, domain_named, make_candidate

MAX_CANDIDATES = 400


def env_id(domain: str) -> str:
    return f"worldsmith/{domain.capitalize()}-v0"


class DomainEnv(gymnasium.Env[str, str]):
    """Plays tasks of one domain and level, one after the other.

    `reset(options={"task_id": ...})` opens that task of the corpus; else `seed` chooses. Messages go in and
    out as text, as with `envs.episode.TaskEnv`.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self, domain: str, level: int = 1, corpus: str | None = None, render_mode: str | None = None
    ) -> None:
        """Raises ValueError for a level that the domain has not, or a corpus without such a task."""
        if level not in domain_named(domain).levels:
            levels = ", ".join(map(str, domain_named(domain).levels))
            raise ValueError(f"domain {domain} has no level {level}; it has {levels}")
        self.domain, self.level = domain, level
        self.render_mode = render_mode
        self.action_space = ACTION_SPACE
        self.observation_space = OBSERVATION_SPACE
        self._corpus: dict[str, CorpusTask] | None = None
        if corpus is not None:
            found = read_corpus(corpus, domain=domain, level=level)
            self._corpus = {entry.task.task_id: entry for entry in found}
            if not self._corpus:
                raise ValueError(f"{corpus}: holds no task of domain {domain} at level {level}")
        self._env: TaskEnv | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Raises ValueError for an option or a task id that does not exist."""
        super().reset(seed=seed)
        if surplus := set(options or {}) - {"task_id"}:
            raise ValueError(f"options: there is task_id, got {sorted(surplus)[0]!r}")
        draw = int(self.np_random.integers(2**62))
        entry = self._named(options["task_id"]) if options else self._drawn(draw)
        self.close()
        self._env = TaskEnv(entry.task, entry.image, render_mode=self.render_mode)
        prompt = self._env.start()
        return observation_text(prompt), {"task_id": entry.task.task_id, "level": self.level}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a message as JSON: {"content": str, "tool_calls": [{"name": str, "arguments": object}]}."""
        return step_with(self.running, action)

    @property
    def running(self) -> TaskEnv:
        """The task that is played. Raises RuntimeError before the first reset."""
        if self._env is None:
            raise RuntimeError("the episode is not running: call reset first")
        return self._env

    def render(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (gymnasium's union is wider)
        return self.running.render()

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _named(self, task_id: str) -> CorpusTask:
        if self._corpus is None:
            raise ValueError("options: task_id needs corpus=DIR; without one, a seed names a task")
        if task_id not in self._corpus:
            near = difflib.get_close_matches(str(task_id), self._corpus, n=1, cutoff=0.3)
            raise ValueError(f"no task {task_id!r} here" + (f", did you mean {near[0]}?" if near else ""))
        return self._corpus[task_id]

    def _drawn(self, draw: int) -> CorpusTask:
        if self._corpus is not None:
            return self._corpus[sorted(self._corpus)[draw % len(self._corpus)]]
        return made_task(self.domain, self.level, draw)


@lru_cache(maxsize=64)
def made_task(domain: str, level: int, seed: int) -> CorpusTask:
    """The first certified task of a seed's own series of candidates. Raises RuntimeError when none passes."""
    for index in range(MAX_CANDIDATES):
        candidate = make_candidate(domain_named(domain), level, stable_seed("gymnasium", seed, index))
        if candidate is not None and isinstance(made := certify_candidate(candidate), CorpusTask):
            return made
    raise RuntimeError(
        f"domain {domain}, level {level}: no task in {MAX_CANDIDATES} candidates of seed {seed}"
    )


def register() -> None:
    """Adds an id for each domain to gymnasium's registry; calling it again changes nothing."""
    for domain in DOMAINS:
        if env_id(domain) not in gymnasium.registry:
            gymnasium.register(
                id=env_id(domain), entry_point="synthesis.gym_env:DomainEnv", kwargs={"domain": domain}
            )
