"""Verbs of feature extraction: embed, similar."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tlray.cli.models import batch_line, batch_result
from tlray.cli.output import Json, Models, Splits, output, verbose


def add(app: typer.Typer) -> None:
    """Put the verbs of this file on the command line."""
    for verb in (embed, similar):
        app.command()(verb)


def embed(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A bundle, a run, a model's name, or a backbone's.")
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set, or a folder of pictures.")],
    to: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URI for the Parquet files.")],
    stage: Annotated[
        str | None, typer.Option(help="A stage of the backbone. Default: the final features.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of a backbone as MODEL: builtin, timm, none, hf-hub:NAME or a .safetensors file."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Of a backbone as MODEL: side of its input, px.")] = None,
    split: Splits = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Embed every picture into Parquet. The same command again resumes a job that was killed."""
    with output(json) as out:
        from tlray import api

        with out.watch() as show, show.step(f"Embed {data}", quiet_start=True):
            result = api.embed(
                model, data, split or [], to, show, stage, weights, size, models, verbose(context)
            )
        out.result = {**batch_result(result, to), "dim": result["dim"]}
        out.say(f"{batch_line(result, to)}, {result['dim']} numbers each")
        out.say(f"next        tlray similar {to} PICTURE|ID")


def similar(
    to: Annotated[str, typer.Argument(metavar="OUT", help="The embeddings that `tlray embed` wrote.")],
    query: Annotated[str, typer.Argument(metavar="PICTURE|ID", help="A picture, or a row's id or path.")],
    top: Annotated[int, typer.Option(min=1, help="How many pictures to show.")] = 5,
    model: Annotated[str | None, typer.Option(help="The bundle, if it was moved since.")] = None,
    sheet: Annotated[
        str | None, typer.Option("--picture", help="JPEG file to draw the pictures into.")
    ] = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Find the pictures most similar to one, by the cosine of their embeddings."""
    with output(json) as out:
        from tlray import api, storage
        from tlray.inference import neighbors
        from tlray.storage import targets

        if sheet is not None:
            targets.check_file(sheet)
        moved = api.bundle_of(model, models) if model is not None else None

        def vector(manifest: dict[str, Any], picture: bytes) -> Any:
            from tlray.inference import embed  # imports torch, which a query by id does not need

            return embed.vector(manifest, picture, moved)

        hits, picture, manifest = neighbors.similar(to, query, vector, top)
        if sheet is not None:
            storage.write_bytes(sheet, neighbors.sheet(picture, hits, manifest))
        out.result = {
            "out": to,
            "query": query,
            "hits": [neighbors.to_dict(hit) for hit in hits],
            "picture": sheet,
        }
        for hit in hits:
            out.say(f"{hit.similarity:.4f}  {hit.id}  {neighbors.summary(hit)}")
        if sheet is not None:
            out.say(sheet)
