"""Verbs that make data sets and models of pictures: sample, ingest, train, tune, rank, report, quickstart;
and doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tlray.cli.output import Json, Output, output, verbose
from tlray.errors import ConfigError

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as in optim.lr=0.01.")
]
Recipe = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, as in jobs/recipes/.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete the run of this name and start again.")]


def add(app: typer.Typer) -> None:
    """Put the verbs of this file on the command line."""
    for verb in (quickstart, sample, ingest, train, tune, rank, report, doctor):
        app.command()(verb)


def sample(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder or s3:// URI to draw into.")],
    per_class: Annotated[int, typer.Option(help="Pictures of each of the ten classes.")] = 150,
    size: Annotated[int, typer.Option(help="Side of a picture, px.")] = 96,
    seed: Annotated[int, typer.Option(help="Each seed draws other pictures.")] = 0,
    json: Json = False,
) -> None:
    """Draw labelled sample pictures: ten classes of textured objects over cluttered backgrounds."""
    from tlray.data.synthetic import draw

    with output(json) as out:
        with out.watch() as show, show.step(f"Draw {target}", quiet_start=True):
            splits = draw(target, per_class, size, seed, show.progress)
        out.result = {"uri": target, "splits": splits}
        out.say(f"{target}: {_splits(splits)}")


def ingest(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Labelled pictures: a folder, a table or an s3:// URI.")
    ],
    target: Annotated[
        str | None,
        typer.Argument(metavar="DST", help="Folder or URI for the data set; not needed with --dry-run."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show layout, task, classes and counts; read no picture.")
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            help="Layout of SRC. auto: detect it. folder: one folder for each class. table: CSV, JSON lines, "
            "Parquet or lists, of files and labels. voc, coco, yolo, boxes_csv, createml, labelme, cvat: the "
            "files of that format. masks: a mask for each picture. webdataset: tar files. arrow: saved data "
            "sets with pictures. lfw: names of files as Aaron_Eckhart_0001.jpg."
        ),
    ] = "auto",
    task: Annotated[str, typer.Option(help="The task that the labels are for: auto, or a name.")] = "auto",
    max_side: Annotated[int | None, typer.Option(help="Shrink pictures to this longest side, px.")] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the pictures for validation, if SRC has no such split.")
    ] = 0.1,
    test: Annotated[float, typer.Option(help="The same for the test split.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the random splits.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at any error or warning of the report.")
    ] = False,
    max_bad_share: Annotated[float, typer.Option(help="Stop if a larger share is unusable.")] = 0.05,
    one_class: Annotated[
        bool, typer.Option("--one-class", help="Accept pictures of a single class.")
    ] = False,
    merge_classes: Annotated[
        bool, typer.Option("--merge-classes", help="Make one class of Cat, cat and CAT, and of 1 and 1.0.")
    ] = False,
    json: Json = False,
) -> None:
    """Check labelled pictures and make a Parquet data set of them, with a pre-flight report."""
    with output(json) as out:
        if dry_run:
            from tlray.ingestion.survey import survey

            layout = survey(source, format, task, merge_classes, one_class)
            out.result = layout.to_dict()
            out.say(layout.to_text())
            return
        if target is None:
            raise ConfigError("DST is missing; accepted: tlray ingest SRC DST, or tlray ingest SRC --dry-run")
        from tlray import api

        with out.watch() as show, show.step(f"Ingest {source}", quiet_start=True):
            made = api.ingest(
                source, target, show, verbose(context), format=format, task=task, max_side=max_side,
                validation=validation, test=test, seed=seed, strict=strict, max_bad_share=max_bad_share,
                merge_classes=merge_classes, one_class=one_class,
            )  # fmt: skip
        out.result = made.to_dict()
        out.say(f"{target}: {_splits(made.splits)}, {sum(map(len, made.labels.values()))} classes")
        out.say(made.report.to_text().rstrip())
        out.say(f"Look at {made.preview}")


def train(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Fine-tune one model. With the name of an unfinished run, resume it: same data, same settings."""
    with output(json) as out:
        from tlray import api, config

        settings = config.load(recipe, overrides or [])
        with out.watch() as show, show.step(f"Train {settings.run_uri}", quiet_start=True):
            out.result = api.train(settings, show, verbose(context), fresh)
        _say_result(out, settings.name)


def tune(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Measure what the search will cost; train nothing.")
    ] = False,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Search for the best model over freeze depth, learning rate and any other setting."""
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
        _say_result(out, settings.name)


def rank(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="A backbone to compare; may be repeated. Default: the recipe's."),
    ] = None,
    rows: Annotated[int, typer.Option(min=20, help="How many training pictures to use, at most.")] = 1000,
    json: Json = False,
) -> None:
    """Compare pretrained backbones and their stages on your pictures in minutes; train nothing."""
    with output(json) as out:
        from tlray import api, config
        from tlray.observer.display import table

        settings = config.load(recipe, overrides or [])
        with out.watch() as show, show.step(f"Rank on {settings.data.uri}", quiet_start=True):
            scores = api.rank(settings, backbone or [settings.model.backbone], rows, show, verbose(context))
        out.result = {"data": settings.data.uri, "scores": scores}
        formats = {"linear": ".4f", "knn": ".4f", "logme": ".4f", "ms": ".2f", "million_parameters": ".1f"}
        cells = [
            [s["backbone"], s["stage"], str(s["dimensions"]), *(f"{s[k]:{f}}" for k, f in formats.items())]
            for s in scores
        ]
        out.say(table(["backbone", "stage", "size", "linear", "knn", "logme", "ms", "M parameters"], cells))


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder or s3:// URI of a run.")],
    json: Json = False,
) -> None:
    """Write the report of a run again."""
    with output(json) as out:
        from tlray.report import write

        out.result = {"run": run, "report": write(run)}
        out.say(out.result["report"])


def quickstart(
    context: typer.Context,
    folder: Annotated[
        str | None,
        typer.Argument(metavar="[FOLDER]", help="Your labelled pictures. Default: a sample is drawn."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The same as FOLDER.")] = None,
    work: Annotated[str, typer.Option(help="Folder for everything that is written.")] = "tlray-quickstart",
    json: Json = False,
) -> None:
    """Run all steps once: ingest, search, promote, serve, ask. Under 5 minutes on two cores."""
    with output(json) as out:
        from tlray.cli import quickstart as steps

        out.result = steps.run(data or folder, work, out.watch, out.say, verbose(context))


def doctor(context: typer.Context, json: Json = False) -> None:
    """Show what this machine and its cluster have, and what is missing."""
    with output(json) as out:
        from tlray.cli import doctor as examine

        checks = examine.examine(verbose(context))
        missing = [check.name for check in checks if check.ok is False]
        out.result = {"missing": missing, "found": [check.to_dict() for check in checks]}
        out.say(examine.to_text(checks))
        required = any(check.ok is False and check.required for check in checks)
    if required:
        raise typer.Exit(1)


def trials_table(result: dict[str, Any]) -> str:
    """Trials, probes and averages of a search, best first; ``*``: the winner, ``≈``: equal to it."""
    from tlray.observer.display import duration, settings, table
    from tlray.report.run_files import ranked

    rows = [
        [
            "*" if t["id"] == result.get("best") else "≈" if t["id"] in result.get("equal", ()) else "",
            str(t["id"]),
            f"of {', '.join(t['of'])}" if "of" in t else settings(t["params"]),
            f"{t['best']:.4f}" if t.get("best") is not None else "-",
            str(t["epochs"]),
            duration(t["seconds"]) if t.get("seconds") is not None else "-",
            t["status"],
        ]
        for t in ranked(result)
    ]
    goal = result.get("goal", {}).get("name", "best")
    return table(["", "trial", "settings", goal, "epochs", "time", "status"], rows)


def plans_table(plans: list[dict[str, Any]]) -> str:
    """The cost of each group of trials by depth: predicted, and after the search measured."""
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


def _say_result(out: Output, name: str) -> None:
    """What `train` and `tune` print at their end."""
    from tlray.observer.display import metrics

    result = out.result
    if result.get("note"):
        out.say(f"note        {result['note']}")
    out.say(f"model       {result['bundle']}")
    values = metrics(result["evaluation"], result["standard_errors"])
    out.say(f"validation  {values}  ({result['pictures']} pictures)")
    if result.get("equal"):
        out.say(f"            within one standard error of the winner: {', '.join(result['equal'])}")
    out.say(f"report      {result['report']}")
    out.say(f"next        tlray promote {result['run']} {name}")


def _splits(splits: dict[str, int]) -> str:
    return ", ".join(f"{split} {rows}" for split, rows in splits.items())
