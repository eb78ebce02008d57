"""Verbs that use a model: evaluate, predict, promote, rollback, models, serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tlray.cli.output import Json, Models, Output, Splits, metrics, output, verbose

Ref = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A bundle, a run, or a model's name (pets, pets@2).")
]
BATCH_SIZE = 64


def add(app: typer.Typer) -> None:
    """Put the verbs of this file on the command line."""
    for verb in (evaluate, predict, promote, rollback, models, serve):
        app.command()(verb)


def evaluate(
    context: typer.Context,
    bundle: Ref,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set that `tlray ingest` made.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    to: Annotated[str | None, typer.Option("--out", help="JSON file for every row's prediction.")] = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Metrics of a model on a split, each row counted once."""
    with output(json) as out:
        from tlray import api, runtime, storage
        from tlray.data.dataset import Dataset
        from tlray.storage import targets

        uri = api.bundle_of(bundle, models)
        if to is not None:
            targets.check_file(to)
        Dataset.open(data).group_rows(split)  # a wrong place or split is told before anything slow starts
        runtime.prepare(verbose(context))
        from tlray.inference.evaluate import check
        from tlray.inference.evaluate import evaluate as run

        check(uri, storage.absolute(data), split)
        with (
            out.watch() as show,
            show.step(f"Evaluate {uri}", quiet_start=True),
            runtime.session(verbose(context)),
        ):
            found = run(uri, storage.absolute(data), split, show.progress)
        if to is not None:
            storage.write_json(to, found)
        out.result = {
            "bundle": uri, "data": data, "split": split, "rows": len(found["rows"]),
            "metrics": found["metrics"], "standard_errors": found["standard_errors"],
            "seconds": found["seconds"], "out": to,
        }  # fmt: skip
        out.say(f"{split}, {len(found['rows'])} pictures")
        for name, value in found["metrics"].items():
            error = found["standard_errors"].get(name)
            out.say(f"  {name:<20} {value:.6f}" + ("" if error is None else f" ± {error:.6f}"))


def predict(
    context: typer.Context,
    bundle: Ref,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Pictures, folders of them, or with --out a data set."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Labels to print for each picture.")] = 3,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of objects. Without it the model's threshold.")
    ] = None,
    to: Annotated[str | None, typer.Option("--out", help="Parquet of many, made by Ray; goes on.")] = None,
    split: Splits = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Predict pictures. One that is no picture is named, and the exit code is 2; with --out it is a row."""
    with output(json) as out:
        from tlray import api, runtime, storage
        from tlray.errors import ConfigError, PictureError

        uri = api.bundle_of(bundle, models)
        if to is not None:
            if min_score is not None:
                said = "accepted: none, all that the model finds is written"
                raise ConfigError(f"--min-score {min_score:g}: with --out; {said}")
            _predict_all(context, uri, files, split or [], to, out)
            return
        if split:
            raise ConfigError(f"--split {split[0]}: without --out; accepted: --out URI for a data set's rows")
        places = list(_pictures(files))
        runtime.prepare(verbose(context))
        from tlray.bundle.predictor import Predictor

        predictor, answers, bad = Predictor(uri), [], []
        task = predictor.task
        if min_score is not None and not task.finds:
            said = f"accepted: none, a prediction of {task.name} is no list of finds"
            raise ConfigError(f"--min-score {min_score:g}: {said}")
        for first in range(0, len(places), BATCH_SIZE):
            part = places[first : first + BATCH_SIZE]
            found = predictor.predict([storage.read_bytes(place) for place in part], on_error="return")
            for place, one in zip(part, found, strict=True):
                if isinstance(one, PictureError):
                    bad.append((place, one))
                    answers.append({"file": place, "error": {"reason": one.kind, "detail": str(one)}})
                else:
                    shown = task.served(one, min_score)
                    answers.append({"file": place, **shown})
                    out.say(f"{place}  {task.summary(shown, top)}")
        out.result = {"bundle": uri, "predictions": answers}
        if bad:
            out.emit()
            place, error = bad[0]
            more = f" (and {len(bad) - 1} more of {len(places)} files)" if len(bad) > 1 else ""
            raise PictureError(error.kind, f"{place}: {error}{more}")


def _predict_all(
    context: typer.Context, uri: str, files: list[str], splits: list[str], to: str, out: Output
) -> None:
    """Predictions of a data set, or of many pictures, as Parquet."""
    from tlray import runtime
    from tlray.storage import targets

    targets.check_folder(to)
    runtime.prepare(verbose(context))
    from tlray.inference import batch, inputs

    source = inputs.find(files, splits)
    with (
        out.watch() as show,
        show.step(f"Predict {', '.join(files)}", quiet_start=True),
        runtime.session(verbose(context)),
    ):
        found = batch.predict(uri, source, to, show.progress)
    out.result = batch_result(found, to)
    out.say(batch_line(found, to))


def batch_result(found: dict[str, Any], to: str) -> dict[str, Any]:
    """What --json prints of a job over many pictures."""
    return {
        "out": to, "num_rows": found["num_rows"], "num_errors": found["num_errors"], "rows": found["rows"],
        "parts": len(found["parts"]), "seconds": round(found["seconds"], 2),
    }  # fmt: skip


def batch_line(found: dict[str, Any], to: str) -> str:
    """``out: 3781 pictures in 6 parts, 0 unusable; 3781 now in 41 s (92 pictures/s)``."""
    rows, seconds = found["rows"], found["seconds"]
    said = f"{to}: {found['num_rows']} pictures in {len(found['parts'])} parts"
    said += f", {found['num_errors']} unusable"
    if not seconds:
        return f"{said}; all of them were there"
    return f"{said}; {rows} now in {seconds:.1f} s ({rows / seconds:.0f} pictures/s)"


def promote(
    source: Annotated[str, typer.Argument(metavar="RUN|BUNDLE", help="A run (its best), or a bundle.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry.")],
    models: Models = "models",
    json: Json = False,
) -> None:
    """Copy a model into the registry as NAME@n and make it live."""
    with output(json) as out:
        from tlray import api
        from tlray.bundle import registry

        uri = api.bundle_of(source, models)
        version = registry.promote(uri, models, name)
        kept = registry.resolve(models, name)[0]
        out.result = {"name": name, "version": version, "bundle": kept, "from": uri}
        out.say(f"{name}@{version} is live")
        out.say(f"next        tlray serve {name}" + ("" if models == "models" else f" --models {models}"))


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry.")],
    models: Models = "models",
    json: Json = False,
) -> None:
    """Make the version live that was live before."""
    with output(json) as out:
        from tlray.bundle import registry

        version = registry.rollback(models, name)
        out.result = {"name": name, "version": version}
        out.say(f"{name}@{version} is live")


def models(models: Models = "models", json: Json = False) -> None:
    """List the registry."""
    with output(json) as out:
        from tlray.bundle import registry
        from tlray.errors import spelling_hint
        from tlray.observer.display import table

        found = registry.list_models(models)
        out.result = {
            "models": [
                {"name": m.name, "live": m.live, "versions": list(m.versions), "metrics": m.metrics}
                for m in found
            ]
        }
        rows = [
            [m.name, str(m.live), ", ".join(map(str, m.versions)), metrics(m.metrics or {})] for m in found
        ]
        headings = ["name", "live", "versions", "metrics of the live one"]
        nothing = f"{models}: no model yet; tlray promote RUN NAME" + spelling_hint(models)
        out.say(table(headings, rows) if rows else nothing)


def serve(
    context: typer.Context,
    refs: Annotated[list[str], typer.Argument(metavar="NAME|BUNDLE...", help="Models to serve.")],
    host: Annotated[str | None, typer.Option(help="127.0.0.1; 0.0.0.0: from everywhere.")] = None,
    port: Annotated[int | None, typer.Option(help="8000; 0: any free one.")] = None,
    min_replicas: Annotated[int | None, typer.Option(help="Of each model: 1.")] = None,
    max_replicas: Annotated[int | None, typer.Option(help="More than the minimum: autoscaling.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Pictures in one pass of the model.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Of each replica.")] = None,
    gpus: Annotated[float | None, typer.Option(help="Of each replica.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Of faces: gallery, a folder or s3:// URI.")] = None,
    config: Annotated[str | None, typer.Option(help="A recipe whose serve: settings hold.")] = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Serve models over HTTP until Ctrl-C."""
    with output(json) as out:
        from tlray import config as settings
        from tlray import runtime

        recipe = settings.load(config)
        if min_replicas is not None and max_replicas is None:  # more than there were: no autoscaling
            max_replicas = max(min_replicas, recipe.serve.max_replicas)
        given = {
            "host": host, "port": port, "min_replicas": min_replicas, "max_replicas": max_replicas,
            "max_batch_size": max_batch_size, "cpus_per_replica": cpus, "gpus_per_replica": gpus,
            "gallery": gallery,
        }  # fmt: skip
        changes = {f"serve.{key}": value for key, value in given.items() if value is not None}
        serving = recipe.override(changes, "command line").serve
        runtime.prepare(verbose(context))
        from tlray.serving import deploy

        served = deploy.resolve(refs, models)
        deploy.check_gallery(served, serving)
        with out.watch() as show, show.step("Start the server"):
            server = deploy.start(served, serving, verbose=verbose(context))
        with server:
            keys = [one.key for one in server.models]
            out.result = {"url": server.url, "models": keys}
            out.say(f"serving {', '.join(keys)} at {server.url}; its page: {server.url}/docs; Ctrl-C ends it")
            for one in server.models:
                out.say(f"  {curl(server.url, one.key)}")
            out.emit()
            server.wait()


def curl(url: str, name: str, file: str = "PICTURE.jpg") -> str:
    """The line that asks the endpoint once."""
    return f"curl -H 'Content-Type: image/jpeg' --data-binary @{file} {url}/v1/models/{name}/predict"


def _pictures(files: list[str]) -> Iterator[str]:
    """Files as they are, folders as the pictures below them. Raises DataError for what is not there."""
    from tlray import storage
    from tlray.data.image import EXTENSIONS
    from tlray.errors import DataError, spelling_hint

    for file in files:
        if not storage.exists(file):
            raise DataError(f"{file}: not found; accepted: pictures, or folders of them{spelling_hint(file)}")
        if not storage.is_dir(file):
            yield file
            continue
        there = [f.path for f in storage.walk(file)]
        inside = [path for path in there if path.lower().endswith(EXTENSIONS)]
        if not inside and any(path.endswith((".parquet", ".arrow")) for path in there):
            raise DataError(f"{file}: is a data set; accepted: pictures, or --out URI for its predictions")
        if not inside:
            raise DataError(f"{file}: holds no picture; accepted: files ending in {', '.join(EXTENSIONS)}")
        yield from (storage.join(file, *path.split("/")) for path in inside)
