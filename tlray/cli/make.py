"""Verbs that make something out of pictures: sample, ingest, train, tune, report, quickstart; and doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tlray.cli.output import Json, metrics, output, verbose
from tlray.errors import ConfigError

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as in optim.lr=0.01.")
]
Recipe = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, as in jobs/recipes/.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what the run of this name left; begin anew.")]


def add(app: typer.Typer) -> None:
    """Put the verbs of this file on the command line."""
    for verb in (quickstart, sample, ingest, train, tune, rank, report, doctor):
        app.command()(verb)


def sample(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or s3:// URI to draw into.")],
    per_class: Annotated[int, typer.Option(help="Pictures of each of the ten kinds.")] = 150,
    size: Annotated[int, typer.Option(help="Side of a picture, px.")] = 96,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.")] = 0,
    json: Json = False,
) -> None:
    """Draw a labelled sample: ten kinds of textured objects over cluttered backgrounds."""
    from tlray.data.synthetic import draw

    with output(json) as out:
        with out.watch() as show, show.step(f"Draw {target}", quiet_start=True):
            splits = draw(target, per_class, size, seed, show.progress)
        out.result = {"uri": target, "splits": splits}
        out.say(f"{target}: {_splits(splits)}")


def ingest(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="Labelled pictures: folder or s3:// URI.")],
    target: Annotated[
        str | None, typer.Argument(metavar="DST", help="Where the data set goes; not needed with --dry-run.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show layout, task, classes and counts; read no picture.")
    ] = False,
    format: Annotated[
        str, typer.Option(help="Layout of SRC: auto, or a name as the error for a wrong one lists them.")
    ] = "auto",
    task: Annotated[str, typer.Option(help="Which kind of labels: auto, or a task's name.")] = "auto",
    max_side: Annotated[int | None, typer.Option(help="Shrink larger pictures to this side, px.")] = None,
    validation: Annotated[float, typer.Option(help="Share cut off where SRC has no such split.")] = 0.1,
    test: Annotated[float, typer.Option(help="The same for test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides what is cut off.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Findings of the report are fatal.")] = False,
    max_bad_share: Annotated[float, typer.Option(help="More unusable pictures than this are fatal.")] = 0.05,
    one_class: Annotated[
        bool, typer.Option("--one-class", help="A single class is meant; otherwise that is refused.")
    ] = False,
    merge_classes: Annotated[
        bool, typer.Option("--merge-classes", help="Cat, cat and CAT are one class; so are 1 and 1.0.")
    ] = False,
    json: Json = False,
) -> None:
    """Check labelled pictures and make a Parquet data set of them, with a pre-flight report."""
    with output(json) as out:
        if dry_run:
            from tlray.ingestion.survey import survey

            seen = survey(source, format, task, merge_classes, one_class)
            out.result = seen.to_dict()
            out.say(seen.to_text())
            return
        if target is None:
            raise ConfigError("DST is missing; accepted: tlray ingest SRC DST, or tlray ingest SRC --dry-run")
        from tlray import api

        with out.watch() as show, show.step(f"Ingest {source}", quiet_start=True):
            found = api.ingest(
                source, target, show, verbose(context), format=format, task=task, max_side=max_side,
                validation=validation, test=test, seed=seed, strict=strict, max_bad_share=max_bad_share,
                merge_classes=merge_classes, one_class=one_class,
            )  # fmt: skip
        out.result = found.to_dict()
        out.say(f"{target}: {_splits(found.splits)}, {sum(map(len, found.labels.values()))} classes")
        out.say(found.report.to_text().rstrip())
        out.say(f"Look at {found.preview}")


def train(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Fine-tune one model. The same name again goes on where the run stood, on the same data and settings."""
    with output(json) as out:
        from tlray import api, config

        settings = config.load(recipe, overrides or [])
        with out.watch() as show, show.step(f"Train {settings.run_uri}", quiet_start=True):
            out.result = api.train(settings, show, verbose(context), fresh)
        _tell(out, settings.name)


def tune(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Measure and say what the search will cost; train nothing.")
    ] = False,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Search for the best model over freeze depth, learning rate and whatever the recipe names."""
    with output(json) as out:
        from tlray import api, config

        settings = config.load(recipe, overrides or [])
        if explain:
            out.result = {"plans": api.explain(settings, verbose(context))}
            out.say(plans_table(out.result["plans"]))
            return
        with out.watch() as show, show.step(f"Search {settings.run_uri}", quiet_start=True):
            out.result = api.tune(settings, show, verbose(context), fresh)
        out.say(trials_table(out.result))
        if out.result.get("plans"):
            out.say(plans_table(out.result["plans"]))
        _tell(out, settings.name)


def rank(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="Which one; may be given again. Default: the recipe's."),
    ] = None,
    rows: Annotated[int, typer.Option(min=20, help="Training pictures to look at, at most.")] = 1000,
    json: Json = False,
) -> None:
    """Compare pretrained backbones, and their depths, on your pictures in minutes; trains nothing."""
    with output(json) as out:
        from tlray import api, config
        from tlray.observer.display import table

        settings = config.load(recipe, overrides or [])
        with out.watch() as show, show.step(f"Rank on {settings.data.uri}", quiet_start=True):
            found = api.rank(settings, backbone or [settings.model.backbone], rows, show, verbose(context))
        out.result = {"data": settings.data.uri, "scores": found}
        shown = {"linear": ".4f", "knn": ".4f", "logme": ".4f", "ms": ".2f", "million_parameters": ".1f"}
        cells = [
            [s["backbone"], s["stage"], str(s["dimensions"]), *(f"{s[k]:{f}}" for k, f in shown.items())]
            for s in found
        ]
        out.say(table(["backbone", "stage", "size", "linear", "knn", "logme", "ms", "M parameters"], cells))


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder or s3:// URI of a run.")],
    json: Json = False,
) -> None:
    """Write the report of a run anew."""
    with output(json) as out:
        from tlray.report import write

        out.result = {"run": run, "report": write(run)}
        out.say(out.result["report"])


def quickstart(
    context: typer.Context,
    folder: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="Your labelled pictures; else a sample is drawn.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The same as FOLDER.")] = None,
    work: Annotated[str, typer.Option(help="Folder that everything is written to.")] = "tlray-quickstart",
    json: Json = False,
) -> None:
    """The whole road once: ingest, search, promote, serve, ask. Under 5 minutes on two cores."""
    with output(json) as out:
        from tlray.cli import quickstart as whole_road

        out.result = whole_road.run(data or folder, work, out.watch, out.say, verbose(context))


def doctor(context: typer.Context, json: Json = False) -> None:
    """Say what this machine and its cluster offer, and what is missing."""
    with output(json) as out:
        from tlray.cli import doctor as examine

        found = examine.examine(verbose(context))
        missing = [f.name for f in found if f.ok is False]
        out.result = {"missing": missing, "found": [f.to_dict() for f in found]}
        out.say(examine.to_text(found))
        required = any(f.ok is False and f.required for f in found)
    if required:
        raise typer.Exit(1)


def trials_table(found: dict[str, Any]) -> str:
    """All that a search compares, best first; ``*``: the winner, ``≈``: one of its equals."""
    from tlray.observer.display import duration, settings, table
    from tlray.report.run_files import contenders

    goal, trials = found.get("goal", {}), contenders(found)
    upside = -1 if goal.get("direction", "max") == "max" else 1

    def place(trial: dict[str, Any]) -> tuple[bool, float, bool]:
        return trial.get("best") is None, upside * (trial.get("best") or 0), trial["id"] != found.get("best")

    ranked = sorted(trials, key=place)
    rows = [
        [
            "*" if t["id"] == found.get("best") else "≈" if t["id"] in found.get("equal", ()) else "",
            str(t["id"]),
            f"of {', '.join(t['of'])}" if "of" in t else settings(t["params"]),
            f"{t['best']:.4f}" if t.get("best") is not None else "-",
            str(t["epochs"]),
            duration(t["seconds"]) if t.get("seconds") is not None else "-",
            t["status"],
        ]
        for t in ranked
    ]
    return table(["", "trial", "settings", goal.get("name", "best"), "epochs", "time", "status"], rows)


def plans_table(plans: list[dict[str, Any]]) -> str:
    """What groups of trials cost by depth, predicted and, afterwards, measured."""
    from tlray.observer.display import duration, table
    from tlray.search.cost import columns

    lines = []
    for plan in plans:
        lines.append(table(*columns(plan)))
        total = (
            f"each trial alone {duration(plan['naive_s'])}, planned {duration(plan['planned_s'])}: "
            f"{plan['gain']:.1f} times quicker; with nothing kept from before none can be below "
            f"{duration(plan['ceiling_s'])}"
        )
        done = f"; took {duration(plan['took_s'])} in all" if "took_s" in plan else ""
        lines.append(f"{total} (without early stopping{done})")
    return "\n".join(lines)


def _tell(out: Any, name: str) -> None:
    found = out.result
    if found.get("note"):
        out.say(f"note        {found['note']}")
    out.say(f"model       {found['bundle']}")
    of = metrics(found["evaluation"], found["standard_errors"])
    out.say(f"validation  {of}  ({found['pictures']} pictures)")
    if found.get("equal"):
        out.say(f"            within one standard error of the winner: {', '.join(found['equal'])}")
    out.say(f"report      {found['report']}")
    out.say(f"next        tlray promote {found['run']} {name}")


def _splits(splits: dict[str, int]) -> str:
    return ", ".join(f"{split} {rows}" for split, rows in splits.items())
