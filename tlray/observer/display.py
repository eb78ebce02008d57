"""The progress display, by rich: which step of how many, how much of it is done, how long it still takes.

On a terminal a live region shows what is running. In notebooks and log files the same facts are plain lines,
with `PLAIN_EVERY_S` seconds between them. A finished epoch, trial or step is a line that stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Event = dict[str, Any]
PLAIN_EVERY_S = 10.0  # between two plain lines about the same thing
LABEL_WIDTH = 30


@dataclass
class Bar:
    """Progress of one stage, run or trial: ``done`` of ``total``; times in seconds, monotonic."""

    label: str
    done: float = 0
    total: float = 0
    first: float = 0  # ``done`` at the start, above 0 for a resumed run
    note: str = ""
    born: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.monotonic)  # the pace is measured from here
    told: float = field(default_factory=time.monotonic)

    def move(self, done: float) -> None:
        """Set ``done``. The pace is measured from the first call on: start-up time is no part of it."""
        if self.done == self.first < done:
            self.first, self.began = done, time.monotonic()
        self.done = done

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    def left_s(self) -> float | None:
        """Seconds to go at the pace so far; None: not known yet."""
        gone, here = time.monotonic() - self.began, self.done - self.first
        if gone < 1 or here <= 0 or not self.total:
            return None
        return gone / here * max(0.0, self.total - self.done)

    def line(self) -> str:
        left = self.left_s()
        parts = [self.label, f"{100 * self.share:3.0f} %", f"{round(self.done, 1):g} of {self.total:g}"]
        parts += [self.note] if self.note else []
        parts += [f"{duration(left)} left"] if left is not None and self.share < 1 else []
        return "  ".join(parts)


class Display:
    """Shows progress on a stream. Use as a context; every method may be called from any thread."""

    def __init__(self, console: Console | None = None, num_steps: int = 0, quiet: bool = False) -> None:
        """``num_steps``: steps of the whole verb, 0 if it has only one; ``quiet``: show nothing."""
        self.console = console or Console(stderr=True, highlight=False)
        self.num_steps, self.quiet = num_steps, quiet
        self._step, self._title, self._header, self._began = 0, "", "", time.monotonic()
        self._bars: dict[str, Bar] = {}
        self._trials: dict[str, str] = {}  # running ones: id -> settings
        self._wanted, self._ended, self._over, self._search_began = 0, 0, 0, 0.0
        self._lock = threading.RLock()
        self._live: Live | None = None
        self.seconds: dict[str, float] = {}  # step -> time it took

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.quiet:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self) -> None:
        """Show the title of the running step, once. An error before it is shown without a title."""
        with self._lock:
            header, self._header = self._header, ""
            if header:
                self.line(header, "bold")

    def line(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        if not self.quiet:
            with self._lock:
                self.begin()
                # Plain streams are read by programs and logs: no wrapping there.
                self.console.print(Text(text, style=style), soft_wrap=not self.console.is_terminal)

    @contextmanager
    def step(self, title: str, quiet_start: bool = False) -> Iterator[None]:
        """A step of the verb: prints its title at the start and its time at the end, unless it failed.

        ``quiet_start``: print the title only at the first progress, or at `begin`.
        """
        began = time.monotonic()
        with self._lock:
            self._step += 1
            self._title, self._began = title, began
            self._bars.clear()
            self._trials.clear()
            self._wanted = self._ended = 0
            number = f"[{self._step}/{self.num_steps}] " if self.num_steps else ""
            self._header = f"{number}{title}"
        if not quiet_start:
            self.begin()
        try:
            yield
        finally:
            self.seconds[title] = round(time.monotonic() - began, 1)
            with self._lock:
                self._title = ""
                self._bars.clear()
        self.line(f"      done in {duration(self.seconds[title])}", "dim")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show ``done`` of ``total`` rows or pictures of a stage."""
        with self._lock:
            self.begin()
            bar = self._bars.get(stage)
            if bar is None or bar.total != total:
                bar = self._bars[stage] = Bar(f"      {stage}", total=total)
            fresh = bar.share < 1
            bar.move(done)
            if done >= total:
                self._bars.pop(stage)
                if fresh:
                    self.line(f"      {stage}: {total} in {duration(time.monotonic() - bar.born)}", "dim")
            else:
                self._tell(bar)

    def event(self, event: Event) -> None:
        """Show an event of training or of a search; unknown kinds are ignored."""
        with self._lock:
            kind = str(event.get("kind"))
            if kind == "note":
                self.line(f"      {event['text']}", "yellow")
            elif kind == "range_test":
                self.progress("range test", int(event["done"]), int(event["of"]))
            elif kind == "probe":
                self.line("      " + probe_line(event))
            elif kind == "search_start":
                self._search(event)
            elif kind == "search_more":
                self._wanted += int(event["trials"]) if self._wanted else 0
            elif kind.startswith("trial_"):
                self._trial(kind, str(event["id"]), event)
            else:
                self._training(kind, event)

    def _training(self, kind: str, event: Event) -> None:
        run = str(event.get("run", "train"))
        if kind == "start":
            first, total = int(event["step"]), int(event["steps"])
            if first:
                self.line(f"      goes on at step {first} of {total}")
            self._bars[run] = Bar("      train", first, total, first)
        elif kind == "step":
            bar = self._bars.setdefault(run, Bar("      train", first=int(event["step"])))
            bar.total = event["steps"]
            bar.move(event["step"])
            if "epoch" in event:
                bar.note = f"epoch {event['epoch']}"
            self._tell(bar)
        elif kind == "epoch":
            self.line("      " + epoch_line(event))
            if known := self._bars.get(run):
                known.told = time.monotonic()

    def _search(self, event: Event) -> None:
        self._wanted, self._over = int(event["trials"]), int(event.get("over", 0))
        self._ended, self._search_began = self._over, time.monotonic()
        before = f", {self._over} of them done before" if self._over else ""
        how = "side by side" if event.get("fused") else f"{event.get('concurrent', 1)} at a time"
        self.line(f"      {self._wanted} trials, {how}{before}")

    def _trial(self, kind: str, trial: str, event: Event) -> None:
        bar = self._bars.get(trial)
        if kind == "trial_start":
            if "params" in event:  # the search's word; the trial's own names the step it starts at
                self._trials[trial] = settings(event["params"])
            if bar is None:
                self._bars[trial] = Bar(f"      trial {trial}", total=float(event.get("epochs", 0)))
        elif kind == "trial_step" and bar is not None:
            bar.move(bar.total * event["step"] / max(1, event["steps"]))
            self._tell(bar, self._trials.get(trial, ""))
        elif kind == "trial_epoch" and bar is not None:
            bar.move(event["epoch"])
            if event.get("goal") is not None:
                bar.note = f"{event.get('goal_name', 'goal')} {event['goal']:.4f}"
            self._tell(bar, self._trials.get(trial, ""))
        elif kind == "trial_end":
            self._ended += 1
            self._bars.pop(trial, None)
            self._trials.pop(trial, None)
            self.line("      " + self._trial_line(event))

    def _trial_line(self, event: Event) -> str:
        """A trial that ended, and how long the search still takes."""
        said, best = settings(event.get("params", {})), event.get("best")
        known = isinstance(best, float | int)
        score = f"{event.get('goal_name', 'best')} {best:.4f}" if known else "no result"
        of = f"/{self._wanted}" if self._wanted else ""
        left = self._search_left_s()
        still = f"  {duration(left)} left" if left else ""
        status = f"{event['status']}: {event['reason']}" if event.get("reason") else str(event["status"])
        return (
            f"{self._ended:>3}{of} {said:<{LABEL_WIDTH}}  {score:<16} {event.get('epochs', 0):>2} epochs  "
            f"{duration(event.get('seconds') or 0):>6}  {status}{still}"
        )

    def _search_left_s(self) -> float | None:
        """Seconds to go, from the number of ended trials and the progress of the running ones."""
        running = sum(self._bars[name].share for name in self._trials if name in self._bars)
        done = self._ended + running
        left, done = self._wanted - done, done - self._over
        if not self._wanted or done <= 0:
            return None
        return (time.monotonic() - self._search_began) / done * max(0.0, left)

    def _tell(self, bar: Bar, more: str = "") -> None:
        """Where there is no live region, print a line about a running bar every `PLAIN_EVERY_S` seconds."""
        if self._live is None and time.monotonic() - bar.told > PLAIN_EVERY_S:
            bar.told = time.monotonic()
            self.line(f"{bar.line()}  {more}".rstrip(), "dim")

    def _render(self) -> RenderableType:
        with self._lock:
            if not self._title:
                return Text("")
            rows = Table.grid(padding=(0, 2))
            for name, bar in self._bars.items():
                left = bar.left_s()
                note = "  ".join(filter(None, [self._trials.get(name, ""), bar.note]))
                rows.add_row(
                    bar.label,
                    ProgressBar(total=bar.total or 1, completed=bar.done, width=24, pulse=not bar.total),
                    f"{100 * bar.share:3.0f} %",
                    f"{duration(left)} left" if left is not None else "",
                    note,
                )
            gone = f"      {self._title}: {duration(time.monotonic() - self._began)}"
            if self._wanted:
                left = self._search_left_s()
                gone += f", {self._ended} of {self._wanted} trials"
                gone += f", {duration(left)} left" if left is not None else ""
            return Group(rows, Text(gone, style="dim"))


def epoch_line(event: Event) -> str:
    """One epoch in one line."""
    parts = [f"epoch {event['epoch']}/{event.get('epochs', '?')}"]
    for key, name in (("train_loss", "loss"), ("val_loss", "val loss"), ("val_log_loss", "val log loss")):
        if isinstance(event.get(key), float | int):
            parts.append(f"{name} {event[key]:.4f}")
    if isinstance(event.get("goal"), float | int):
        parts.append(f"{event.get('goal_name', 'goal')} {event['goal']:.4f}")
    if event.get("seconds") is not None:
        parts.append(duration(float(event["seconds"])))
    return "  ".join(parts)


def probe_line(row: Event) -> str:
    """The result of a linear probe of frozen features in one line."""
    values = {one["place"]: one["value"] for one in row["places"]}
    told, goal = row["told"], row["goal_name"]
    of = settings({k: v for k, v in row["params"].items() if k != "model.freeze"})
    shown = {place: "unknown" if value is None else f"{value:.4f}" for place, value in values.items()}
    head = f"; as a model, over the pooled features, {shown['pooled']}" if told != "pooled" else ""
    return (
        f"probe of frozen features{of and f' ({of})'}: {goal} {shown[told]} ({told}){head}, "
        f"{duration(row['seconds'])}"
    )


def metrics(values: Mapping[str, float], errors: Mapping[str, float] | None = None) -> str:
    """All metrics in one line, with standard errors where known: ``accuracy 0.9123 ± 0.0140  ...``."""
    known = errors or {}
    return "  ".join(
        f"{name} {value:.4f}" + (f" ± {known[name]:.4f}" if name in known else "")
        for name, value in values.items()
    )


def settings(params: dict[str, Any]) -> str:
    """A trial's settings, short: ``freeze=all lr=0.003``."""
    return " ".join(
        f"{key.rsplit('.', 1)[-1]}=" + (f"{value:.3g}" if isinstance(value, float) else str(value))
        for key, value in params.items()
    )


def duration(seconds: float) -> str:
    """A time for people: ``8 s``, ``2:05 min``, ``1:10 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under headings, as plain text."""
    widths = [max(len(row[n]) for row in [headings, *rows]) for n in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [headings, *rows]
    )
