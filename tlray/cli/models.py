"""Verbs that use a model: evaluate, predict, promote, rollback, models, serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tlray.cli.output import Json, Models, Output, Splits, output, verbose

Ref = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A bundle, a run, or a model's name (pets, pets@2).")
]


def add(app: typer.Typer) -> None:
    """Put the verbs of this file on the command line."""
    for verb in (evaluate, predict, promote, rollback, models, serve):
        app.command()(verb)


def evaluate(
    context: typer.Context,
    bundle: Ref,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set that `tlray ingest` made.")],
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    to: Annotated[str | None, typer.Option("--out", help="JSON file for the prediction of each row.")] = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Metrics of a model on a split, each row counted once."""
    with output(json) as out:
        from tlray import api, storage
        from tlray.storage import targets

        if to is not None:
            targets.check_file(to)
        with out.watch() as show, show.step(f"Evaluate {bundle}", quiet_start=True):
            result = api.evaluate(bundle, data, split, show, models, verbose(context))
        uri = result.pop("bundle")
        if to is not None:
            storage.write_json(to, result)
        out.result = {
            "bundle": uri, "data": data, "split": split, "rows": len(result["rows"]),
            "metrics": result["metrics"], "standard_errors": result["standard_errors"],
            "seconds": result["seconds"], "out": to,
        }  # fmt: skip
        out.say(f"{split}, {len(result['rows'])} pictures")
        for name, value in result["metrics"].items():
            error = result["standard_errors"].get(name)
            out.say(f"  {name:<20} {value:.6f}" + ("" if error is None else f" ± {error:.6f}"))


def predict(
    context: typer.Context,
    bundle: Ref,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Pictures, folders of pictures, or with --out a data set."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many labels to print for each picture.")] = 3,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Show detections from this score on. Default: the model's threshold."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--out", help="Write the predictions of all pictures as Parquet to this folder or URI."),
    ] = None,
    split: Splits = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Predict pictures. For a file that is no picture the exit code is 2; with --out its row has the error.

    The same command with --out again predicts only what is missing there.
    """
    with output(json) as out:
        from tlray.errors import ConfigError, PictureError

        if to is not None:
            if min_score is not None:
                raise ConfigError(
                    f"--min-score {min_score:g}: with --out; accepted: none, all detections are written"
                )
            _predict_all(context, bundle, files, split or [], to, models, out)
            return
        if split:
            raise ConfigError(f"--split {split[0]}: without --out; accepted: --out URI for a data set's rows")
        from tlray import api, runtime

        uri = api.bundle_of(bundle, models)
        places = list(_pictures(files))
        runtime.prepare(verbose(context))
        from tlray.api import notebook

        model, answers, bad = notebook.Model(uri), [], []
        for first in range(0, len(places), notebook.BATCH_SIZE):
            part = places[first : first + notebook.BATCH_SIZE]
            for place, prediction in zip(part, model.predict(part, min_score, "return"), strict=True):
                if isinstance(prediction, PictureError):
                    bad.append((place, prediction))
                    error = {"reason": prediction.kind, "detail": str(prediction)}
                    answers.append({"file": place, "error": error})
                else:
                    answers.append({"file": place, **prediction})
                    out.say(f"{place}  {prediction.summary(top)}")
        out.result = {"bundle": uri, "predictions": answers}
        if bad:
            out.emit()
            place, first_error = bad[0]
            more = f" (and {len(bad) - 1} more of {len(places)} files)" if len(bad) > 1 else ""
            raise PictureError(first_error.kind, f"{place}: {first_error}{more}")


def _predict_all(
    context: typer.Context,
    bundle: str,
    files: list[str],
    splits: list[str],
    to: str,
    models: str,
    out: Output,
) -> None:
    """Predictions of a data set, or of many pictures, as Parquet."""
    from tlray import api

    with out.watch() as show, show.step(f"Predict {', '.join(files)}", quiet_start=True):
        result = api.predict(bundle, files, splits, to, show, models, verbose(context))
    out.result = batch_result(result, to)
    out.say(batch_line(result, to))


def batch_result(result: dict[str, Any], to: str) -> dict[str, Any]:
    """What --json prints of a job over many pictures."""
    return {
        "out": to, "num_rows": result["num_rows"], "num_errors": result["num_errors"], "rows": result["rows"],
        "parts": len(result["parts"]), "seconds": round(result["seconds"], 2),
    }  # fmt: skip


def batch_line(result: dict[str, Any], to: str) -> str:
    """``out: 3781 pictures in 6 parts, 0 unusable; 3781 now in 41 s (92 pictures/s)``."""
    rows, seconds = result["rows"], result["seconds"]
    line = f"{to}: {result['num_rows']} pictures in {len(result['parts'])} parts"
    line += f", {result['num_errors']} unusable"
    if not seconds:
        return f"{line}; all of them were there"
    return f"{line}; {rows} now in {seconds:.1f} s ({rows / seconds:.0f} pictures/s)"


def promote(
    source: Annotated[
        str, typer.Argument(metavar="RUN|BUNDLE", help="A run, for its best model, or a bundle.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry.")],
    models: Models = "models",
    json: Json = False,
) -> None:
    """Copy a model into the registry as NAME@n and make it live."""
    with output(json) as out:
        from tlray import api

        out.result = api.promote(source, name, models)
        out.say(f"{name}@{out.result['version']} is live")
        out.say(f"next        tlray serve {name}" + ("" if models == "models" else f" --models {models}"))


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry.")],
    models: Models = "models",
    json: Json = False,
) -> None:
    """Make the version live again that was live before."""
    with output(json) as out:
        from tlray.bundle import registry

        version = registry.rollback(models, name)
        out.result = {"name": name, "version": version}
        out.say(f"{name}@{version} is live")


def models(models: Models = "models", json: Json = False) -> None:
    """List the models of the registry."""
    with output(json) as out:
        from tlray.bundle import registry
        from tlray.errors import spelling_hint
        from tlray.observer.display import metrics, table

        listed = registry.list_models(models)
        out.result = {
            "models": [
                {"name": m.name, "live": m.live, "versions": list(m.versions), "metrics": m.metrics}
                for m in listed
            ]
        }
        rows = [
            [m.name, str(m.live), ", ".join(map(str, m.versions)), metrics(m.metrics or {})] for m in listed
        ]
        headings = ["name", "live", "versions", "metrics of the live one"]
        nothing = f"{models}: no model yet; tlray promote RUN NAME" + spelling_hint(models)
        out.say(table(headings, rows) if rows else nothing)


def serve(
    context: typer.Context,
    refs: Annotated[list[str], typer.Argument(metavar="NAME|BUNDLE...", help="Models to serve.")],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on: 127.0.0.1 by default, 0.0.0.0 for all.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port: 8000 by default, 0 for any free one.")] = None,
    min_replicas: Annotated[int | None, typer.Option(help="Replicas of each model: 1 by default.")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="If more than --min-replicas, replicas scale with the load.")
    ] = None,
    max_batch_size: Annotated[int | None, typer.Option(help="Pictures in one pass of the model.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of each replica.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of each replica.")] = None,
    gallery: Annotated[
        str | None, typer.Option(help="Folder or s3:// URI for the faces that are enrolled.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="A recipe to take the serve: settings from.")] = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Serve models over HTTP until Ctrl-C."""
    with output(json) as out:
        from tlray import api
        from tlray import config as settings

        recipe = settings.load(config)
        if min_replicas is not None and max_replicas is None:  # as many as asked for, without autoscaling
            max_replicas = max(min_replicas, recipe.serve.max_replicas)
        options = {
            "host": host, "port": port, "min_replicas": min_replicas, "max_replicas": max_replicas,
            "max_batch_size": max_batch_size, "cpus_per_replica": cpus, "gpus_per_replica": gpus,
            "gallery": gallery,
        }  # fmt: skip
        changes = {f"serve.{key}": value for key, value in options.items() if value is not None}
        serving = recipe.override(changes, "command line").serve
        with out.watch() as show, show.step("Start the server", quiet_start=True):
            server = api.serve(refs, serving, show, models, verbose(context))
        with server:
            keys = [one.key for one in server.models]
            out.result = {"url": server.url, "models": keys}
            out.say(f"serving {', '.join(keys)} at {server.url}; its page: {server.url}/docs; Ctrl-C ends it")
            for one in server.models:
                out.say(f"  {curl(server.url, one.key)}")
            out.emit()
            server.wait()


def curl(url: str, name: str, file: str = "PICTURE.jpg") -> str:
    """A command that sends one picture to the endpoint."""
    return f"curl -H 'Content-Type: image/jpeg' --data-binary @{file} {url}/v1/models/{name}/predict"


def _pictures(files: list[str]) -> Iterator[str]:
    """Files as they are, and the pictures below folders. Raises DataError for a place that does not exist."""
    from tlray import storage
    from tlray.data.image import EXTENSIONS
    from tlray.errors import DataError, spelling_hint

    for file in files:
        if not storage.exists(file):
            raise DataError(f"{file}: not found; accepted: pictures, or folders of them{spelling_hint(file)}")
        if not storage.is_dir(file):
            yield file
            continue
        paths = [f.path for f in storage.walk(file)]
        pictures = [path for path in paths if path.lower().endswith(EXTENSIONS)]
        if not pictures and any(path.endswith((".parquet", ".arrow")) for path in paths):
            raise DataError(f"{file}: is a data set; accepted: pictures, or --out URI for its predictions")
        if not pictures:
            raise DataError(f"{file}: holds no picture; accepted: files ending in {', '.join(EXTENSIONS)}")
        yield from (storage.join(file, *path.split("/")) for path in pictures)
