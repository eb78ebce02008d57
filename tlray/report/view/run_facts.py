"""Time, settings and versions of a run."""

from __future__ import annotations

from tlray.config import Config
from tlray.config.tree import flatten
from tlray.errors import redact_tree
from tlray.figures import charts
from tlray.figures.charts import Column, Section, Table
from tlray.report.formatting import plain
from tlray.report.run_files import Json, RunFiles


def time(run: RunFiles) -> Section | None:
    """The time of each stage, as bars."""
    stages = run.stages
    if not stages:
        return None
    total = charts.duration(sum(seconds for _, seconds in stages))
    return Section("Time", f"{total} in all.", svgs=[charts.stage_bar(stages)])


def changed(config: Json) -> Table | None:
    """Settings that differ from the defaults."""
    defaults = flatten(Config().model_dump(mode="json"))
    rows = [
        [key, plain(value), plain(defaults[key]) if key in defaults else None]
        for key, value in flatten(redact_tree(config)).items()
        if key not in defaults or defaults[key] != value
    ]
    return Table([Column("setting"), Column("value"), Column("default")], rows) if rows else None


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Versions and identities that are needed to repeat this run."""
    known = [("run", run.uri)]
    for name in ("created", "fingerprint"):
        if run.manifest.get(name):
            known.append(("data fingerprint" if name == "fingerprint" else name, str(run.manifest[name])))
    if "seed" in run.config:
        known.append(("seed", str(run.config["seed"])))
    if pre := run.manifest.get("preprocess"):
        known.append(("preprocessing", ", ".join(f"{k} {plain(v)}" for k, v in redact_tree(pre).items())))
    return known + [(str(k), plain(v)) for k, v in sorted(run.manifest.get("versions", {}).items())]
