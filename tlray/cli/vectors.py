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
    to: Annotated[str, typer.Argument(metavar="OUT", help="Where the Parquet goes; goes on where it stood.")],
    stage: Annotated[
        str | None, typer.Option(help="A stage of the backbone; else the final features.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="MODEL is a backbone: builtin, timm, none, hf-hub:NAME, a file.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Of a backbone: side of its input, px.")] = None,
    split: Splits = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """Embeddings of every picture, as Parquet. The same again goes on where a killed job stood."""
    with output(json) as out:
        from tlray import runtime
        from tlray.storage import targets

        targets.check_folder(to)
        runtime.prepare(verbose(context))
        from tlray.inference import embed as embedding
        from tlray.inference import inputs

        embedder = _embedder(model, weights, size, models)
        source = inputs.find([data], split or [])
        with (
            out.watch() as show,
            show.step(f"Embed {data}", quiet_start=True),
            runtime.session(verbose(context)),
        ):
            found = embedding.embed(embedder, source, to, stage, show.progress)
        out.result = {**batch_result(found, to), "dim": found["dim"]}
        out.say(f"{batch_line(found, to)}, {found['dim']} numbers each")
        out.say(f"next        tlray similar {to} PICTURE|ID")


def similar(
    to: Annotated[str, typer.Argument(metavar="OUT", help="What `tlray embed` left.")],
    wanted: Annotated[str, typer.Argument(metavar="PICTURE|ID", help="A row's id or path, or a picture.")],
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    model: Annotated[str | None, typer.Option(help="The bundle, if it is no longer where it was.")] = None,
    sheet: Annotated[str | None, typer.Option("--picture", help="JPEG to draw them into.")] = None,
    models: Models = "models",
    json: Json = False,
) -> None:
    """The pictures most like one: by cosine, over all embeddings."""
    with output(json) as out:
        from tlray import api, storage
        from tlray.inference import neighbors as similar
        from tlray.storage import targets

        if sheet is not None:
            targets.check_file(sheet)
        other = api.bundle_of(model, models) if model is not None else None

        def vector(manifest: dict[str, Any], picture: bytes) -> Any:
            from tlray.inference import embed  # torch, which neighbours of a row do without

            return embed.vector(manifest, picture, other)

        found, query, manifest = similar.similar(to, wanted, vector, top)
        if sheet is not None:
            storage.write_bytes(sheet, similar.sheet(query, found, manifest))
        out.result = {
            "out": to,
            "query": wanted,
            "hits": [similar.to_dict(hit) for hit in found],
            "picture": sheet,
        }
        for hit in found:
            out.say(f"{hit.similarity:.4f}  {hit.id}  {similar.summary(hit)}")
        if sheet is not None:
            out.say(sheet)


def _embedder(ref: str, weights: str | None, size: int | None, models: str) -> Any:
    """What MODEL means: a backbone where weights are named or built in, else a bundle."""
    from tlray import api, storage
    from tlray.errors import ConfigError
    from tlray.inference import embed
    from tlray.models.weights import BUILTIN

    if weights is not None or ref in BUILTIN:
        return embed.Embedder.backbone(ref, weights, size)
    if size is not None:
        raise ConfigError(f"--size {size}: {ref} is a bundle, which has its own; accepted: a backbone's name")
    return embed.Embedder(storage.absolute(api.bundle_of(ref, models)))
