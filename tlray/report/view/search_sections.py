"""What a search did besides its trials: probes, costs, scores."""

from __future__ import annotations

from tlray.figures import charts
from tlray.figures.charts import Column, Section, Table
from tlray.report.run_files import Json, RunFiles


def baseline(run: RunFiles) -> list[Section]:
    """Results of the linear probes that were fitted on frozen features before the trials."""
    probes: list[Json] = run.trials.get("probes") or []
    if not probes:
        return []
    goal = run.goal.name if run.goal else "best"
    columns = [Column("backbone"), Column("features"), Column("dimensions"), Column("L2", 4)]
    columns += [Column("held-out loss", 4), Column(goal, 4)]
    own = run.config.get("model", {}).get("backbone")
    rows = [
        [
            p["params"].get("model.backbone", own), one["place"], one["dimensions"], one["l2"],
            one["held_out_loss"], one["value"],
        ]
        for p in probes
        for one in p["places"]
    ]  # fmt: skip
    seconds, pictures = sum(p["seconds"] for p in probes), max(p["pictures"] for p in probes)
    caption = (
        f"Logistic regressions over the frozen features of {pictures} training pictures, fitted before the "
        f"trials in {charts.duration(seconds)}; what fine-tuning adds is what it has above them. A held-out "
        "fifth of these pictures chose the strength of L2."
    )
    return [Section("Probe of frozen features", caption, tables=[Table(columns, rows)])]


def cost(run: RunFiles) -> list[Section]:
    """Planned and measured cost of the trials that trained side by side."""
    plans: list[Json] = run.trials.get("plans") or []
    if not plans:
        return []
    columns = [
        Column("freeze depth"), Column("begins after"), Column("trials"),
        *(Column(name, 2) for name in ("prefix, ms", "step, ms")), Column("kept, MB", 1), Column("decision"),
        *(Column(name, 0) for name in ("alone, s", "steps predicted, s", "steps measured, s")),
    ]  # fmt: skip
    rows = [
        [
            d["depth"], d["stage"], d["trials"], 1e3 * d["prefix_s"], 1e3 * d["suffix_s"],
            d["kept_bytes"] / 2**20, d["decision"], d["naive_s"],
            d["suffix_s"] * d.get("measured_pictures", 0), d.get("measured_s"),
        ]
        for plan in plans
        for d in plan["depths"]
    ]  # fmt: skip
    naive, planned, took = (
        sum(plan.get(k, 0.0) for plan in plans) for k in ("naive_s", "planned_s", "took_s")
    )
    caption = (
        f"Each trial for itself and to its end would take {charts.duration(naive)}, side by side "
        f"{charts.duration(planned)}; with early stopping, validation and bundles it took "
        f"{charts.duration(took)}. Prefix and step: a picture's, measured before the search began."
    )
    return [Section("Cost by freeze depth", caption, tables=[Table(columns, rows)])]


def evidence(run: RunFiles) -> list[Section]:
    """How well the scores taken before the search predicted the results of the trials."""
    scored: list[Json] = run.trials.get("scores") or []
    rho: dict[str, float | None] = run.trials.get("correlation") or {}
    if not scored or not rho:
        return []
    goal = run.goal.name if run.goal else "best"
    columns = [
        Column("backbone"), Column("freeze depth"), Column("after"),
        *(Column(name, 4) for name in (*rho, goal)),
    ]  # fmt: skip
    rows = [[s["backbone"], s["depth"], s["stage"], *(s[name] for name in rho), s["best"]] for s in scored]
    known = [s for s in scored if s["best"] is not None]
    correlations = ", ".join(f"{name} {value:.2f}" for name, value in rho.items() if value is not None)
    caption = (
        f"Scores of frozen features, taken before the search where the trials begin, beside the best {goal} "
        f"these came to. Rank correlation (Spearman) over {len(known)} places: "
        f"{correlations or 'none, too few'}. "
        "At 1 the scores have the order of the results, at 0 they say nothing."
    )
    name = next(iter(rho))
    points = [(s[name], s["best"], f"{s['backbone']}, {s['stage']}") for s in known]
    svgs = [charts.scatter(points, f"{name} score", goal)] if len(points) > 1 else []
    return [Section("Scores beside results", caption, svgs=svgs, tables=[Table(columns, rows)])]
