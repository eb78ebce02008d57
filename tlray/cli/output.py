"""Where the output of a verb goes: results and progress to stdout; with --json stdout has one line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

Json = Annotated[
    bool, typer.Option("--json", help="Print the results as one JSON object, the last line of stdout.")
]
Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="A split of the data set; may be repeated. Default: all splits."),
]
Models = Annotated[str, typer.Option("--models", help="The registry: a folder or s3:// URI.")]


class Output:
    """Results of one verb. ``result`` is what --json prints; `say` is for people."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self._stdout = as_json, sys.stdout
        self.result: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Print a line of the result for people; nothing with --json."""
        if not self.as_json:
            print(text, flush=True)

    def watch(self, num_steps: int = 0) -> Any:
        """A `tlray.observer.display.Display`: on stdout, with --json on stderr."""
        from rich.console import Console

        from tlray.observer.display import Display

        return Display(Console(stderr=self.as_json, highlight=False), num_steps)

    def emit(self) -> None:
        """Print the JSON line now, with --json; for verbs that then block or fail."""
        if self.as_json and self.result:
            from tlray.storage.json_values import without_nan  # brings pyarrow

            print(json.dumps(without_nan(self.result), default=str), file=self._stdout, flush=True)
            self.result = {}


@contextlib.contextmanager
def output(as_json: bool) -> Iterator[Output]:
    """Collect the results of a verb; with ``as_json`` everything else that is printed goes to stderr."""
    out = Output(as_json)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield out
        out.emit()




def verbose(context: typer.Context) -> bool:
    """Whether -v was given."""
    return bool((context.find_root().obj or {}).get("verbose"))
