"""What the figures come to: means, spreads, and ours less the best peer with its interval over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .cases import CASES, OURS, SPLITS
from .copies import COPIES
from .ours import goal

Found = dict[str, dict[str, dict[int, dict[str, Any]]]]  # row -> arm -> seed -> figures
CONFIDENCE = 0.95


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the mean of paired differences; None of a single one."""
    from scipy import stats  # type: ignore[import-untyped]

    if len(differences) < 2:
        return None
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error
    return mean - half, mean + half


def comparisons(found: Found) -> list[dict[str, Any]]:
    """For each row and each of our arms: the difference to the peer whose mean is best, seed by seed."""
    told = []
    for row, arms in found.items():
        figure = CASES[row].figure
        for arm in OURS:
            # Of those seeds that both have.
            pairs = {
                peer: [
                    (arms[arm][seed][figure], arms[peer][seed][figure])
                    for seed in arms[arm]
                    if seed in arms[peer]
                ]
                for peer in CASES[row].peers
                if arm in arms and peer in arms
            }
            means = {peer: statistics.mean(b for _, b in both) for peer, both in pairs.items() if both}
            if not means:
                continue
            peer = max(means, key=lambda name: means[name])
            steps = [a - b for a, b in pairs[peer]]
            between = interval(steps)
            told.append(
                {
                    "row": row, "arm": arm, "peer": peer, "seeds": len(steps),
                    "difference": statistics.mean(steps), "interval": between,
                    "apart": between is not None and between[0] > 0,
                }
            )  # fmt: skip
    return told


def epoch_ratios(found: Found) -> list[dict[str, Any]]:
    """Seconds of a trained epoch of `train` by those of `before-train`, seed by seed, on the mean."""
    told = []
    for row, arms in found.items():
        now, then = arms.get("train", {}), arms.get("before-train", {})
        ratios = [
            now[seed]["epoch_seconds"] / then[seed]["epoch_seconds"]
            for seed in now
            if seed in then and now[seed].get("epoch_seconds")  # kept figures may be without
        ]
        if ratios:
            told.append({"row": row, "ratio": statistics.mean(ratios), "seeds": len(ratios)})
    return told


def tables(found: Found) -> str:
    """All of it as Markdown."""
    parts = [_arms(found), _copies(found), _differences(found)]
    parts += [
        f"{one['row']}: an epoch of train takes {one['ratio']:.2f} times that of before-train "
        f"({one['seeds']} seeds)"
        for one in epoch_ratios(found)
    ]
    return "\n\n".join(filter(None, parts))


def _arms(found: Found) -> str:
    """Means over seeds; the standard deviation is that of the figure that arms are compared by."""
    lines = []
    for row, arms in found.items():
        case = CASES[row]
        for arm, by_seed in arms.items():
            tries = list(by_seed.values())
            values = [one[case.figure] for one in tries]
            sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
            means = [_mean(tries, key, ".4f") for key in (*SPLITS, "pooled", "copies")]
            times = [_mean(tries, "epoch_seconds", ".2f"), _mean(tries, "seconds", ".1f", 60)]
            lines.append([row, arm, str(len(tries)), goal(case.task), *means, sd, *times])
    head = ["row", "arm", "seeds", "metric", *SPLITS, "pooled", "copies", "sd", "s an epoch", "minutes"]
    return _table(head, lines)


def _copies(found: Found) -> str:
    lines = [
        [row, arm, *(_mean(list(by_seed.values()), kind, ".4f") for kind in (*COPIES, "copies"))]
        for row, arms in found.items()
        if CASES[row].bundles
        for arm, by_seed in arms.items()
    ]
    return _table(["row", "arm", *COPIES, "mean"], lines)


def _differences(found: Found) -> str:
    lines = []
    for one in comparisons(found):
        low, high = (f"{v:+.4f}" for v in one["interval"]) if one["interval"] else ("-", "-")
        said = "above" if one["difference"] > 0 else "not above"
        said += ", apart from 0" if one["apart"] else ""
        row, arm, peer, seeds = one["row"], one["arm"], one["peer"], str(one["seeds"])
        lines.append([row, arm, peer, seeds, f"{one['difference']:+.4f}", low, high, said])
    return _table(["row", "ours", "best peer", "seeds", "difference", "95 % from", "to", ""], lines)


def _mean(tries: Sequence[dict[str, Any]], key: str, form: str, unit: float = 1) -> str:
    values = [one[key] / unit for one in tries if one.get(key) is not None]
    return format(statistics.mean(values), form) if values else "-"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
