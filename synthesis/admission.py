"""What a certified task must still hold to before a corpus takes it: no near-duplicate (G17), no
benchmark's text (G18).

Unlike a gate this looks beyond the task, at the tasks of its shard before it and at what is shipped.
"""

from synthesis.corpus import CorpusTask
from synthesis.decontamination import shared_runs, shipped
from synthesis.diversity import DuplicateIndex, minhash, shingles

DUPLICATE = "G17 near-duplicate"
CONTAMINATED = "G18 decontamination"
ADMISSION_VERSIONS = {"G17": 1, "G18": 1}


class Admission:
    """One shard's gatekeeper; the card counts duplicates between shards."""

    def __init__(self) -> None:
        self._index = DuplicateIndex()

    def refuse(self, entry: CorpusTask) -> str | None:
        """Why the corpus does not take the task; None when it does.

        A declared twin is not compared: it is as its task but for one fact, and stands or falls with it.
        """
        if shared_runs(entry.task, shipped())[0]:
            return CONTAMINATED
        if entry.task.provenance.twin_of:
            return None
        signature = minhash(shingles(entry.task, entry.image))
        if self._index.seen(signature):
            return DUPLICATE
        self._index.add(signature)
        return None
