"""Where a verb's words go: people read stdout and watch stderr; with --json stdout has one line."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the results as one JSON object, last on stdout.")]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Of a data set; may be given again. All by default.")
]
Models = Annotated[str, typer.Option("--models", help="The registry: a folder or s3:// URI.")]


class Output:
    """Results of one verb. ``result`` is what --json prints; `say` is for people."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self._stdout = as_json, sys.stdout
        self.result: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """A result in words; not with --json."""
        if not self.as_json:
            print(text, flush=True)

    def watch(self, num_steps: int = 0) -> Any:
        """A `tlray.observer.display.Display`: on stdout, with --json on stderr."""
        from rich.console import Console

        from tlray.observer.display import Display

        return Display(Console(stderr=self.as_json, highlight=False), num_steps)

    def emit(self) -> None:
        """Print the JSON line now, where one is wanted (a verb that blocks does it before)."""
        if self.as_json and self.result:
            print(json.dumps(_finite(self.result), default=str), file=self._stdout, flush=True)
            self.result = {}


@contextlib.contextmanager
def output(as_json: bool) -> Iterator[Output]:
    """Collect a verb's results; with ``as_json`` whatever else is printed goes to stderr."""
    out = Output(as_json)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield out
        out.emit()


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics(found: dict[str, float], errors: Mapping[str, float] | None = None) -> str:
    """``accuracy 0.9123 ± 0.0140  macro_f1 0.9001``: all of a task's metrics in a line, with standard errors
    where they are known."""
    known = errors or {}
    return "  ".join(
        f"{name} {value:.4f}" + (f" ± {known[name]:.4f}" if name in known else "")
        for name, value in found.items()
    )


def verbose(context: typer.Context) -> bool:
    """Whether -v was given."""
    return bool((context.find_root().obj or {}).get("verbose"))
