"""What a run would gain from other settings: the trainer's own schedule in virtual time, and what to choose.

Learns from RUN how long its engine, its tools and its learner take and what its episodes look like, then
plays its schedule with each combination of the settings that you name. Nothing is trained.

Example: worldsmith simulate runs/demo --staleness 0 1 2 4 --replicas 1 2 4 --tool-median 2 --tool-sigma 1.5
"""

import json
from dataclasses import replace
from pathlib import Path

from worldsmith.arguments import CommandParser


def main(argv: list[str]) -> int:
    parser = CommandParser("simulate", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run with steps of RL")
    parser.add_argument(
        "--staleness", type=int, nargs="+", default=[0, 1, 2, 4], metavar="N", help="rollout.max_staleness"
    )
    parser.add_argument("--replicas", type=int, nargs="+", metavar="N", help="default: the run's")
    parser.add_argument("--boxes", type=int, nargs="+", metavar="N", help="of a replica (default: the run's)")
    parser.add_argument("--tool-median", type=float, default=0.0, help="seconds to add to a turn's tools")
    parser.add_argument("--tool-sigma", type=float, default=1.0, help="of their logarithm (default: 1)")
    parser.add_argument("--steps", type=int, default=40, help="learner steps to simulate (default: 40)")
    parser.add_argument("--step-ms", type=float, help="of the engine's step (default: fitted to the run)")
    parser.add_argument("--token-ms", type=float, help="for each running episode (default: fitted)")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    args = parser.parse_args(argv)
    counts = [*args.staleness, *(args.replicas or []), *(args.boxes or []), args.steps]
    if min(counts) < 0 or 0 in [*(args.replicas or []), *(args.boxes or []), args.steps]:
        raise ValueError("--replicas, --boxes and --steps are at least 1, --staleness at least 0")
    from rl.latency import Latency
    from rl.plant import measured
    from rl.simulate import recommend

    known = measured(
        args.run,
        step_s=args.step_ms / 1000 if args.step_ms is not None else None,
        token_s=args.token_ms / 1000 if args.token_ms is not None else None,
    )
    latency = Latency(median_s=args.tool_median, sigma=args.tool_sigma)
    chosen, tried = recommend(
        known.plant,
        replace(known.episodes, latency=latency),
        replace(known.limits, num_steps=args.steps),
        stalenesses=args.staleness,
        replicas=args.replicas,
        boxes=args.boxes,
    )
    plant = known.plant
    print(
        f"measured over {known.steps} steps: {1000 * plant.step_s:.2f} ms an engine step and"
        f" {1000 * plant.token_s:.3f} ms a token,"
        f" {sum(plant.learner_s) / len(plant.learner_s):.2f} s a learner step"
    )
    print("staleness  replicas  boxes  trained tokens/s  learner waits  mean staleness  replicas busy")
    for one in tried:
        cast = one.forecast
        print(
            f"{one.max_staleness:>9}  {one.replicas:>8}  {one.boxes:>5}  {cast.tokens_per_s:>16.1f}"
            f"  {cast.bubble_share:>13.0%}  {cast.staleness_mean:>14.2f}  {cast.busy_share:>13.0%}"
            + ("  <- recommended" if one is chosen else "")
        )
    if args.json:
        rows = [
            {
                "max_staleness": s.max_staleness,
                "replicas": s.replicas,
                "boxes": s.boxes,
                **s.forecast.as_dict(),
            }
            for s in tried
        ]
        print(json.dumps({"recommended": rows[tried.index(chosen)], "tried": rows}))
    return 0
