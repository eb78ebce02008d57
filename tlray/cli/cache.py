"""The verb for kept features: cache ls, rm, gc."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tlray.cli.output import Json, output

if TYPE_CHECKING:
    from tlray.search.feature_cache import Entry

Cache = Annotated[str, typer.Option("--cache", help="Where features are kept: a folder or s3:// URI.")]
MB = 2**20


def add(app: typer.Typer) -> None:
    """Put the verb on the command line."""
    cache = typer.Typer(no_args_is_help=True)
    for verb in (ls, rm, gc):
        cache.command()(verb)
    app.add_typer(cache, name="cache", help="List and remove the features that searches keep.")


def ls(cache: Cache = "cache", json: Json = False) -> None:
    """List the entries, those unused longest first."""
    with output(json) as out:
        from tlray.observer.display import table
        from tlray.search.feature_cache import FeatureCache

        entries = FeatureCache(cache).ls()
        out.result = {
            "cache": cache, "entries": [_facts(entry) for entry in entries], "bytes": _bytes(entries),
        }  # fmt: skip
        headings = ["digest", "split", "backbone", "outputs", "type", "rows", "MB", "max error", "used"]
        rows = [
            [
                entry.digest, entry.key.split, _short(entry.key.backbone), entry.key.boundary,
                entry.key.dtype, str(entry.rows), f"{entry.bytes / MB:.1f}",
                f"{max(entry.max_error.values()):.1e}",
                datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M"),
            ]
            for entry in entries
        ]  # fmt: skip
        out.say(table(headings, rows) if rows else f"{cache}: empty")


def rm(
    digests: Annotated[
        list[str], typer.Argument(metavar="DIGEST...", help="Digests, whole or their first characters.")
    ],
    cache: Cache = "cache",
    json: Json = False,
) -> None:
    """Remove entries; processes that read one at the moment can finish."""
    with output(json) as out:
        from tlray.search.feature_cache import FeatureCache

        gone = FeatureCache(cache).rm(digests)
        out.result = {"cache": cache, "removed": [_facts(entry) for entry in gone], "bytes": _bytes(gone)}
        out.say(_removed(cache, gone))


def gc(
    limit_mb: Annotated[
        int | None,
        typer.Option(min=0, help="Also remove entries, those unused longest first, until this size is met."),
    ] = None,
    cache: Cache = "cache",
    json: Json = False,
) -> None:
    """Remove what interrupted searches left; with --limit-mb whole entries, too."""
    with output(json) as out:
        from tlray.search.feature_cache import FeatureCache

        features = FeatureCache(cache)
        leftovers, gone = features.sweep(), features.gc(limit_mb)
        out.result = {
            "cache": cache, "removed": [_facts(entry) for entry in gone], "bytes": _bytes(gone),
            "leftovers": leftovers,
        }  # fmt: skip
        out.say(f"{_removed(cache, gone)}; leftovers: {len(leftovers)}")


def _facts(entry: Entry) -> dict[str, Any]:
    return asdict(entry)


def _bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def _removed(cache: str, gone: list[Entry]) -> str:
    return f"{cache}: {len(gone)} entries removed, {_bytes(gone) / MB:.1f} MB"


def _short(text: str, most: int = 32) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
