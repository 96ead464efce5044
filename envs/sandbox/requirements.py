"""What tasks require of their boxes, held against what attacks on this machine's boxes showed.

A task names guarantees (`Task.requires`); a tier has a `Capabilities` record, made by attack. The two meet
here before a first box is started: a guarantee that was not shown is absent, and a run that would need it is
refused with the remedy. Nothing is lowered: neither the task's demand nor, later, the tier.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping

from envs.sandbox.contract import Capabilities

REMEDIES: Mapping[str, str] = {
    "no_network": "play it in boxes of tier docker or namespaces",
    "not_root": "play it in boxes of tier docker or namespaces",
    "no_capabilities": "play it in boxes of tier docker or namespaces",
    "no_new_privileges": "play it in boxes of tier docker or namespaces",
    "no_user_namespaces": "play it in boxes of tier docker or namespaces",
    "seccomp": "use an engine with its default seccomp profile, or a kernel with CONFIG_SECCOMP_FILTER",
    "landlock": "play it in boxes of tier namespaces, on Linux 5.13 or later with landlock among its lsm=",
    "host_files_hidden": "play it in boxes of tier docker or namespaces",
    "host_processes_hidden": "play it in boxes of tier docker or namespaces",
    "host_environment_hidden": "report it: every tier should hold this",
    "system_read_only": "play it in boxes of tier docker or namespaces",
    "read_only_binds": "play it in boxes of tier docker or namespaces",
    "memory_limit": "run as root, so that boxes get a control group, or take tier docker",
    "oom_spares_box": "take tier docker, or namespaces on a machine with /proc/self/oom_score_adj",
    "process_limit": "run as root, so that boxes get a control group, or take tier docker",
    "disk_limit": "play it in boxes of tier docker or namespaces",
    "output_cap": "report it: every tier should hold this",
    "timeout_kills": "report it: every tier should hold this",
    "no_orphans": "report it: every tier should hold this",
    "survives_kill_all": "play it in boxes of tier docker or namespaces",
    "bytes_exact": "report it: every tier should hold this",
}
"""Guarantee -> what gives it to a machine that lacks it. A task may require these and nothing else."""


IN_PROCESS = Capabilities(tier="in-process (trusted generated tools)", engine="none")
"""Of episodes that run no box: no guarantee was tried, so none is held, and rows say so by this digest."""


class UnmetRequirementError(ValueError):
    """Tasks require what the chosen boxes were not shown to hold; nothing was started."""


def required_by(tasks: Iterable[tuple[str, Collection[str]]]) -> dict[str, str]:
    """Every guarantee that one of the tasks requires -> the first task that does.

    Args:
        tasks: Task id and `requires` of each.

    Raises:
        ValueError: a task names a guarantee that does not exist; suggests the nearest.
    """
    required: dict[str, str] = {}
    for task_id, names in tasks:
        for name in names:
            if name not in REMEDIES:
                near = difflib.get_close_matches(name, REMEDIES, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(REMEDIES)}"
                raise ValueError(f"task {task_id}: requires: no guarantee {name!r}{hint}")
            required.setdefault(name, task_id)
    return required


def check_requirements(required: Mapping[str, str], capabilities: Capabilities) -> None:
    """Refuse, before anything is started, tasks that need more than the boxes were shown to hold.

    Args:
        required: As `required_by` gives it.
        capabilities: Of the tier that would play them, from `envs.sandbox.probes.probe`; `only=required`
            is enough for this.

    Raises:
        UnmetRequirementError: names every guarantee that is missing, a task, what was seen, and the remedy.
    """
    missing = [name for name in required if not capabilities.holds(name)]
    if missing:
        faults = [
            f"{name} (required by task {required[name]}; {capabilities.evidence.get(name, 'not shown')}):"
            f" {REMEDIES[name]}"
            for name in missing
        ]
        raise UnmetRequirementError(f"tier {capabilities.tier} does not hold {'; '.join(faults)}")
