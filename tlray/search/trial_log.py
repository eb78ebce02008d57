"""The table of a search's trials: ``RUN/trials.json``, the only state that a search goes on from.

Why not ``Tuner.restore``: its state is a pickle bound to one storage path, it starts all unfinished
trials from Tune's own checkpoints, and it cannot take a changed space. Here a trial is its settings
(its id is a hash of them), its folder resumes by itself, and this file says which are over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tlray import storage
from tlray.bundle.files import MANIFEST
from tlray.config import Config
from tlray.errors import ConfigError, StorageError
from tlray.inference.significance import SHARE, share_error
from tlray.search.extend import wider
from tlray.search.space import Params, Space
from tlray.storage.json_values import without_nan
from tlray.tasks.base import TIE, Goal
from tlray.training import checkpoint, resume
from tlray.training.rundir import BEST, CHECKPOINTS, CONFIG, METRICS, TRIALS, trial_folder

log = logging.getLogger(__name__)

RESULTS = "result.json"  # in a trial's folder: its epochs, a line each, as Ray Tune writes them
NEAR = 0.5  # standard errors of accuracy within which trials are told apart by log loss
RULED_OUT = "ruled out"  # before it began, see probe_first.py
OVER = ("finished", "stopped", RULED_OUT)  # never run again; a failed one is, when the search is
TrialRow = dict[str, Any]


class TrialLog:
    """All trials of a search, written after each change, whole or not at all."""

    def __init__(
        self, config: Config, space: Space, goal: Goal, fingerprint: str, pictures: int | None = None
    ) -> None:
        """Open the search of this name or begin it. Raises ConfigError where it was another search.

        ``pictures``: of the validation split.
        """
        self.pictures = pictures
        self.run_uri, self.goal, self.fingerprint = config.run_uri, goal, fingerprint
        self.given, self.extended = space, dict[str, list[Any]]()  # values beyond the axes, see extend.py
        self.rows: dict[str, TrialRow] = {}
        self.notes: list[str] = []
        self.plans: list[dict[str, Any]] = []  # of groups, see cost.py; what was measured beside
        self.probes: list[TrialRow] = []  # of frozen features, see probe.py; they compete, and are no trials
        self.averages: list[TrialRow] = []  # of weights of trials, see soup.py; so do they
        # Trials beside the best whose bundles stay until their weights were averaged; 0: none.
        self.soup = config.search.soup if config.search.soup > 1 else 0
        self.scores: list[dict[str, Any]] = []  # see scores.py; results beside
        self.correlation: dict[str, float | None] = {}
        self._lock = threading.Lock()
        self._held = False
        uri = storage.join(self.run_uri, TRIALS)
        if storage.exists(uri):
            stored = storage.read_json(uri)
            self._compare(stored, config)
            # Who no longer asks for depths to be ruled out gets them.
            kept = [row for row in stored["trials"] if row["status"] != RULED_OUT or config.search.deepen]
            self.rows = {row["id"]: row for row in kept}
            self.plans, self.scores = stored.get("plans", []), stored.get("scores", [])
            self.probes, self.correlation = stored.get("probes", []), stored.get("correlation", {})
            self.averages = stored.get("averages", [])
            self.extended = self._tried(stored.get("extended", {}))
            self._mark_outside()
        elif storage.exists(storage.join(self.run_uri, METRICS)) or checkpoint.listing(self.run_uri):
            raise ConfigError(
                f"name = {config.name!r}: {self.run_uri} is a training; accepted: a new name, or --fresh to "
                "begin anew"
            )
        storage.write_json(storage.join(self.run_uri, CONFIG), config.model_dump(mode="json"))
        self.write()
        self.tidy()

    @property
    def space(self) -> Space:
        """The space that was given, with the values that its axes got since."""
        return wider(self.given, self.extended)

    def _tried(self, extended: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Values beyond the axes that have a trial; those of trials that a kill kept from starting do not
        count, so that they are proposed anew."""
        given = {axis.key: axis.values or () for axis in self.given.axes}
        had = [row["params"] for row in self.rows.values()]
        return {
            key: [v for v in values if v not in given[key] and any(p.get(key) == v for p in had)]
            for key, values in extended.items()
            if key in given
        }

    def _compare(self, stored: Mapping[str, Any], config: Config) -> None:
        before = storage.read_json(storage.join(self.run_uri, CONFIG))
        free = (*resume.FREE_OF_SEARCH, *before["search"]["space"], *config.search.space)
        note = resume.compare(config, before, free, stored.get("fingerprint"), self.fingerprint, "search")
        if note:
            self.notes.append(note)

    def _mark_outside(self) -> None:
        outside = []
        for row in self.rows.values():
            row.pop("outside", None)
            if self.space.encode(row["params"]) is None:
                row["outside"] = True
                outside.append(row["id"])
                if row["status"] == "running":  # nobody asked for it any more
                    row.update(status="stopped", reason="outside the changed search space")
        if outside:
            self.notes.append(
                f"{len(outside)} earlier trials lie outside the changed search space; they stay in the table "
                f"and may win: {', '.join(outside)}"
            )

    # ---- what happened

    def start(self, id_: str, params: Params, order: Sequence[str] = ()) -> None:
        """A trial runs (again). ``order``: ids as they were proposed: of equal trials the first one wins."""
        old = self.rows.get(id_, {})
        self.rows[id_] = {
            "id": id_, "params": params, "status": "running", "epochs": 0, "best": None,
            "curve": [], "seconds": old.get("seconds", 0.0), "bundle": None,
        }  # fmt: skip
        self.rows |= {id_: self.rows.pop(id_) for id_ in order if id_ in self.rows}
        self.write()

    def rule_out(self, id_: str, params: Params, reason: str) -> None:
        """A trial is not worth running."""
        with self.one_write():
            self.start(id_, params)
            self.rows[id_].update(status=RULED_OUT, reason=reason)

    def epoch(self, id_: str, record: Mapping[str, Any]) -> bool:
        """An epoch of a trial; False where it is known already (Ray started the trial anew)."""
        row = self.rows[id_]
        if any(point["epoch"] == record["epoch"] for point in row["curve"]):
            return False
        # An average of weights may be better than any epoch.
        for value, tie in (
            (record["goal"], record.get(f"val_{TIE}")),
            (record.get("best"), record.get("tie")),
        ):
            if value is None or not math.isfinite(value):
                continue
            new = {self.goal.name: value, **({} if tie is None else {TIE: tie})}
            if row["best"] is None or self.goal.beats(new, self._metrics(row)):
                row["best"], row["tie"] = value, without_nan(tie)
        shown = ("epoch", f"val_{self.goal.name}", "val_loss", "train_loss", "lr", "seconds")
        point = {name: without_nan(record[name]) for name in shown if name in record}
        row["curve"].append({**point, "best": row["best"]})
        row["epochs"] = len(row["curve"])
        row["seconds"] = record["seconds"]
        self.write()
        return True

    def end(self, id_: str, status: str, reason: str | None = None, bundle: bool = True) -> TrialRow:
        """A trial is over and has left a bundle or not; what it no longer needs on disk goes."""
        row = self.rows[id_]
        row["status"] = status
        if reason is not None:
            row["reason"] = reason
        left = bundle and row["best"] is not None
        row["bundle"] = storage.join(self.folder(id_), BEST) if left else None
        lines = [json.dumps({"trial_id": id_, "training_iteration": p["epoch"], **p}) for p in row["curve"]]
        with contextlib.suppress(StorageError):  # of a trial that failed because it cannot write there
            storage.write_bytes(
                storage.join(self.folder(id_), RESULTS), "".join(f"{t}\n" for t in lines).encode()
            )
        self.write()
        self.tidy()
        return row

    def probed(self, row: TrialRow) -> None:
        """A probe was fitted."""
        self.probes.append(row)
        self.write()
        self.tidy()

    def averaged(self, row: TrialRow | None) -> None:
        """Weights of trials were averaged, or there was nothing to average: only the best bundle stays."""
        if row is not None:
            self.averages.append(row)
        self.soup = 0
        self.write()
        self.tidy()

    # ---- what is known

    def folder(self, id_: str) -> str:
        """A trial's run folder."""
        return trial_folder(self.run_uri, id_)

    @property
    def best(self) -> TrialRow | None:
        """The best trial that is over, probe or average; of equals a trial."""
        return self.best_of(row for row in self._all() if row["status"] in OVER and row["bundle"])

    def _all(self) -> list[TrialRow]:
        return [*self.rows.values(), *self.probes, *self.averages]

    def with_bundles(self, ending: Collection[str] = ()) -> list[TrialRow]:
        """What has to have a bundle once these trials have ended, too: the best of all, and the best trials,
        as many as may be averaged; the best one first."""
        left = [r for r in self._all() if r["id"] in ending or (r["status"] in OVER and r["bundle"])]
        best, found = self.best_of(left), list[TrialRow]()
        left = [row for row in left if row["id"] in self.rows]
        while left and len(found) < self.soup and (next_ := self.best_of(left)) is not None:
            found.append(next_)
            left.remove(next_)
        return found if best is None or best in found else [best, *found]

    def best_of(self, rows: Iterable[TrialRow]) -> TrialRow | None:
        """The best of some trials; None where none came to anything.

        Of those whose accuracy is within `NEAR` standard errors of the highest, and of equals in other goals,
        the one of the lowest log loss, then the earliest. Log loss tells models apart by fewer pictures.
        """
        rows, best = [row for row in rows if row["best"] is not None], None
        for row in rows:
            if best is None or self.goal.beats(self._metrics(row), self._metrics(best)):
                best = row
        if best is None or self.goal.name != SHARE or not self.pictures:
            return best
        error = share_error(best["best"], self.pictures)
        near = [
            row for row in rows if row.get("tie") is not None and best["best"] - row["best"] <= NEAR * error
        ]
        return min(near, key=lambda row: float(row["tie"]), default=best)

    def _metrics(self, row: TrialRow) -> dict[str, float]:
        """A trial's best value, and the log loss that decides between equals, where the task has one."""
        tie = row.get("tie")
        return {self.goal.name: row["best"], **({} if tie is None else {TIE: tie})}

    def over(self, id_: str) -> bool:
        """Whether a trial has its result."""
        return id_ in self.rows and self.rows[id_]["status"] in OVER

    def waiting(self) -> list[TrialRow]:
        """Trials to run before any new one: those that were under way, and those that failed, once more."""
        rows = [row for row in self.rows.values() if row["status"] not in OVER and not row.get("outside")]
        return sorted(rows, key=lambda row: row["status"] == "failed")

    @contextlib.contextmanager
    def one_write(self) -> Iterator[None]:
        """Several epochs, written once, when the block ends. Not for ends: see `tidy`."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.write()

    def write(self) -> None:
        """Put the table on storage."""
        if self._held:
            return
        with self._lock:
            best = self.best
            storage.write_json(
                storage.join(self.run_uri, TRIALS),
                {
                    "goal": {"name": self.goal.name, "direction": self.goal.direction},
                    "trials": list(self.rows.values()),
                    "best": best["id"] if best else None,
                    "fingerprint": self.fingerprint,
                    "notes": self.notes,
                    "plans": self.plans,
                    "probes": self.probes,
                    "averages": self.averages,
                    "scores": self.scores,
                    "correlation": self.correlation,
                    "extended": self.extended,
                    "stages": self.stages(),
                },
            )

    def stages(self) -> list[dict[str, Any]]:
        """Seconds by stage, all trials, probes and averages together."""
        total: dict[str, float] = {}
        for row in self._all():
            for name, seconds in row.get("stages", {}).items():
                total[name] = total.get(name, 0.0) + seconds
        return [{"name": name, "seconds": seconds} for name, seconds in total.items()]

    # ---- disk

    def tidy(self) -> None:
        """Delete checkpoints of trials that are over, and bundles that nobody needs any more.

        So a search needs room for ``search.soup`` bundles and for the trials under way, however many trials
        it has, and for one at its end.
        Comes after the table was written: a kill in between leaves too much, never too little.
        """
        kept = {row["id"] for row in self.with_bundles()}
        changed = False
        for row in self._all():
            if row["status"] not in OVER or row.get("tidy"):
                continue
            folder = self.folder(row["id"])
            if "stages" not in row:
                row["stages"] = _stages(folder)
            _drop(storage.join(folder, CHECKPOINTS))
            if row["id"] not in kept:
                if row["bundle"] is not None:
                    row["bundle"], changed = None, True
                _drop(storage.join(folder, BEST))
                row["tidy"] = True
        if changed:
            self.write()

    def publish(self, row: TrialRow) -> str:
        """Put the winner's bundle and story at RUN/best and RUN/metrics.json; the bundle's URI."""
        target, folder = storage.join(self.run_uri, BEST), self.folder(row["id"])
        if row["bundle"] != target:
            with storage.publish(target, MANIFEST) as staging:
                storage.download(row["bundle"], staging)
            story = storage.read_json(storage.join(folder, METRICS))
            storage.write_json(storage.join(self.run_uri, METRICS), {**story, "stages": []})
            row["bundle"] = target
            self.write()
        _drop(storage.join(folder, BEST))
        return target


def _stages(folder: str) -> dict[str, float]:
    try:
        stages = storage.read_json(storage.join(folder, METRICS))["stages"]
    except (StorageError, KeyError, ValueError):
        return {}
    return {stage["name"]: stage["seconds"] for stage in stages}


def _drop(uri: str) -> None:
    if storage.exists(uri):
        storage.delete(uri)
