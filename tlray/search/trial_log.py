"""The log of a search's trials, ``RUN/trials.json``: the only state from which a search is continued.

Why not ``Tuner.restore``: its state is a pickle bound to one storage path, it starts all unfinished
trials from Tune's own checkpoints, and it does not accept a changed space. Here a trial is identified by its
settings (its id is a hash of them), it resumes from its own folder, and this file says which trials are over.
"""

from __future__ import annotations

import contextlib
import json
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

RESULTS = "result.json"  # in a trial's folder: its epochs, one a line, as Ray Tune writes them
NEAR = 0.5  # standard errors: trials whose accuracies are closer than this are ranked by log loss
RULED_OUT = "ruled out"  # without being run, see probe_first.py
OVER = ("finished", "stopped", RULED_OUT)  # never run again; failed trials are, when the search is run again
TrialRow = dict[str, Any]


class TrialLog:
    """All trials of a search. The file is written after each change, whole or not at all."""

    def __init__(
        self, config: Config, space: Space, goal: Goal, fingerprint: str, pictures: int | None = None
    ) -> None:
        """Open the search of this name, or begin it.

        ``pictures``: how many the validation split has. Raises ConfigError where the stored search is another
        one.
        """
        self.pictures = pictures
        self.run_uri, self.goal, self.fingerprint = config.run_uri, goal, fingerprint
        self.configured_space = space
        self.extended: dict[str, list[Any]] = {}  # values beyond the ends of its axes, see extend.py
        self.rows: dict[str, TrialRow] = {}
        self.notes: list[str] = []
        self.plans: list[dict[str, Any]] = []  # of groups, see cost.py, with the measured times
        # Probes (probe.py) and averages of weights (soup.py) are no trials, but they may win the search.
        self.probes: list[TrialRow] = []
        self.averages: list[TrialRow] = []
        # How many of the best trials keep their bundles until their weights are averaged; 0: only the best.
        self.soup = config.search.soup if config.search.soup > 1 else 0
        self.scores: list[dict[str, Any]] = []  # with results, see scores.py
        self.correlation: dict[str, float | None] = {}
        self._lock = threading.Lock()
        self._write_later = False
        uri = storage.join(self.run_uri, TRIALS)
        if storage.exists(uri):
            stored = storage.read_json(uri)
            self._compare(stored, config)
            # Without `search.deepen` trials that were ruled out are run after all.
            rows = [row for row in stored["trials"] if row["status"] != RULED_OUT or config.search.deepen]
            self.rows = {row["id"]: row for row in rows}
            self.plans, self.scores = stored.get("plans", []), stored.get("scores", [])
            self.probes, self.correlation = stored.get("probes", []), stored.get("correlation", {})
            self.averages = stored.get("averages", [])
            self.extended = self._with_trials(stored.get("extended", {}))
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
        """The configured space, with the values that its axes were extended by."""
        return wider(self.configured_space, self.extended)

    def _with_trials(self, extended: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Those values beyond the axes that have a trial.

        Values without one, where a kill came before the trial began, are left out, so that they are proposed
        again.
        """
        configured = {axis.key: axis.values or () for axis in self.configured_space.axes}
        params = [row["params"] for row in self.rows.values()]
        return {
            key: [v for v in values if v not in configured[key] and any(p.get(key) == v for p in params)]
            for key, values in extended.items()
            if key in configured
        }

    def _compare(self, stored: Mapping[str, Any], config: Config) -> None:
        """Raise ConfigError where the stored search was another one."""
        earlier = storage.read_json(storage.join(self.run_uri, CONFIG))
        free = (*resume.FREE_OF_SEARCH, *earlier["search"]["space"], *config.search.space)
        note = resume.compare(config, earlier, free, stored.get("fingerprint"), self.fingerprint, "search")
        if note:
            self.notes.append(note)

    def _mark_outside(self) -> None:
        """Mark the stored trials that the changed space does not have."""
        outside = []
        for row in self.rows.values():
            row.pop("outside", None)
            if self.space.encode(row["params"]) is None:
                row["outside"] = True
                outside.append(row["id"])
                if row["status"] == "running":  # it is not continued
                    row.update(status="stopped", reason="outside the changed search space")
        if outside:
            self.notes.append(
                f"{len(outside)} earlier trials lie outside the changed search space; they stay in the "
                f"results and may win: {', '.join(outside)}"
            )

    # ---- events

    def start(self, id_: str, params: Params, order: Sequence[str] = ()) -> None:
        """A trial begins, or begins again.

        ``order``: ids in the order in which they were proposed; of equal trials the first one wins.
        """
        earlier = self.rows.get(id_, {})
        self.rows[id_] = {
            "id": id_, "params": params, "status": "running", "epochs": 0, "best": None,
            "curve": [], "seconds": earlier.get("seconds", 0.0), "bundle": None,
        }  # fmt: skip
        self.rows |= {id_: self.rows.pop(id_) for id_ in order if id_ in self.rows}
        self.write()

    def rule_out(self, id_: str, params: Params, reason: str) -> None:
        """A trial will not be run, for this reason."""
        with self.one_write():
            self.start(id_, params)
            self.rows[id_].update(status=RULED_OUT, reason=reason)

    def epoch(self, id_: str, record: Mapping[str, Any]) -> bool:
        """Add an epoch of a trial; False where it is known already, because Ray started the trial again."""
        row = self.rows[id_]
        if any(point["epoch"] == record["epoch"] for point in row["curve"]):
            return False
        # The best so far may be better than every epoch: an average of the trial's weights.
        for value, tie in (
            (record["goal"], record.get(f"val_{TIE}")),
            (record.get("best"), record.get("tie")),
        ):
            if value is None or not math.isfinite(value):
                continue
            metrics = {self.goal.name: value, **({} if tie is None else {TIE: tie})}
            if row["best"] is None or self.goal.beats(metrics, self._metrics(row)):
                row["best"], row["tie"] = value, without_nan(tie)
        names = ("epoch", f"val_{self.goal.name}", "val_loss", "train_loss", "lr", "seconds")
        point = {name: without_nan(record[name]) for name in names if name in record}
        row["curve"].append({**point, "best": row["best"]})
        row["epochs"] = len(row["curve"])
        row["seconds"] = record["seconds"]
        self.write()
        return True

    def end(self, id_: str, status: str, reason: str | None = None, bundle: bool = True) -> TrialRow:
        """A trial is over; files that nobody needs any more are deleted.

        ``bundle``: whether the trial has written its bundle. Returns the trial's row.
        """
        row = self.rows[id_]
        row["status"] = status
        if reason is not None:
            row["reason"] = reason
        has_bundle = bundle and row["best"] is not None
        row["bundle"] = storage.join(self.folder(id_), BEST) if has_bundle else None
        lines = [json.dumps({"trial_id": id_, "training_iteration": p["epoch"], **p}) for p in row["curve"]]
        with contextlib.suppress(StorageError):  # perhaps the trial failed because it cannot write there
            storage.write_bytes(
                storage.join(self.folder(id_), RESULTS), "".join(f"{line}\n" for line in lines).encode()
            )
        self.write()
        self.tidy()
        return row

    def add_probe(self, row: TrialRow) -> None:
        """Add a fitted probe."""
        self.probes.append(row)
        self.write()
        self.tidy()

    def end_averaging(self, row: TrialRow | None) -> None:
        """Add an average of trials' weights; None: there is none. Then only the best bundle is kept."""
        if row is not None:
            self.averages.append(row)
        self.soup = 0
        self.write()
        self.tidy()

    # ---- queries

    def folder(self, id_: str) -> str:
        """A trial's run folder."""
        return trial_folder(self.run_uri, id_)

    @property
    def best(self) -> TrialRow | None:
        """The best of all trials that are over, probes and averages; of equals a trial."""
        return self.best_of(row for row in self._all() if row["status"] in OVER and row["bundle"])

    def _all(self) -> list[TrialRow]:
        return [*self.rows.values(), *self.probes, *self.averages]

    def with_bundles(self, ending: Collection[str] = ()) -> list[TrialRow]:
        """The rows whose bundles are kept, the best first: the best of all, and the trials to average.

        ``ending``: ids of trials that are about to end and count as if they had.
        """
        candidates = [r for r in self._all() if r["id"] in ending or (r["status"] in OVER and r["bundle"])]
        best, to_average = self.best_of(candidates), list[TrialRow]()
        candidates = [row for row in candidates if row["id"] in self.rows]
        while (
            candidates
            and len(to_average) < self.soup
            and (best_left := self.best_of(candidates)) is not None
        ):
            to_average.append(best_left)
            candidates.remove(best_left)
        return to_average if best is None or best in to_average else [best, *to_average]

    def best_of(self, rows: Iterable[TrialRow]) -> TrialRow | None:
        """The best of some trials; None where none has a value of the goal.

        Accuracies within `NEAR` standard errors of the highest count as equal. Of equal trials the one with
        the lowest log loss is the best, then the earliest: log loss needs fewer pictures than accuracy to
        tell which of two models is better.
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
        """A trial's best value, and the log loss that ranks equal trials, where the task has one."""
        tie = row.get("tie")
        return {self.goal.name: row["best"], **({} if tie is None else {TIE: tie})}

    def over(self, id_: str) -> bool:
        """Whether a trial is over: finished, stopped early or ruled out."""
        return id_ in self.rows and self.rows[id_]["status"] in OVER

    def waiting(self) -> list[TrialRow]:
        """Trials to run before any new one: first the unfinished ones, then those that failed."""
        rows = [row for row in self.rows.values() if row["status"] not in OVER and not row.get("outside")]
        return sorted(rows, key=lambda row: row["status"] == "failed")

    @contextlib.contextmanager
    def one_write(self) -> Iterator[None]:
        """Write the file once, when the block ends, and not after each change.

        Not for the end of a trial: `tidy` may delete files only once the new file is written.
        """
        self._write_later = True
        try:
            yield
        finally:
            self._write_later = False
            self.write()

    def write(self) -> None:
        """Write the file."""
        if self._write_later:
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
        """Seconds by stage, summed over all trials, probes and averages."""
        total: dict[str, float] = {}
        for row in self._all():
            for name, seconds in row.get("stages", {}).items():
                total[name] = total.get(name, 0.0) + seconds
        return [{"name": name, "seconds": seconds} for name, seconds in total.items()]

    # ---- files

    def tidy(self) -> None:
        """Delete checkpoints of trials that are over, and bundles that nobody needs any more.

        So a search needs disk space for ``search.soup`` bundles and for the trials under way, however many
        trials it has; once it is over, for one bundle.
        Call it after `write`: a kill in between leaves files too many, but never loses one.
        """
        keep = {row["id"] for row in self.with_bundles()}
        changed = False
        for row in self._all():
            if row["status"] not in OVER or row.get("tidy"):
                continue
            folder = self.folder(row["id"])
            if "stages" not in row:
                row["stages"] = _stages(folder)
            _delete(storage.join(folder, CHECKPOINTS))
            if row["id"] not in keep:
                if row["bundle"] is not None:
                    row["bundle"], changed = None, True
                _delete(storage.join(folder, BEST))
                row["tidy"] = True
        if changed:
            self.write()

    def publish(self, row: TrialRow) -> str:
        """Copy the winner's bundle to RUN/best and its metrics to RUN/metrics.json; the bundle's new URI."""
        target, folder = storage.join(self.run_uri, BEST), self.folder(row["id"])
        if row["bundle"] != target:
            with storage.publish(target, MANIFEST) as staging:
                storage.download(row["bundle"], staging)
            metrics = storage.read_json(storage.join(folder, METRICS))
            storage.write_json(storage.join(self.run_uri, METRICS), {**metrics, "stages": []})
            row["bundle"] = target
            self.write()
        _delete(storage.join(folder, BEST))
        return target


def _stages(folder: str) -> dict[str, float]:
    """Seconds by stage, from a trial's metrics; empty where they cannot be read."""
    try:
        stages = storage.read_json(storage.join(folder, METRICS))["stages"]
    except (StorageError, KeyError, ValueError):
        return {}
    return {stage["name"]: stage["seconds"] for stage in stages}


def _delete(uri: str) -> None:
    """Delete a file or folder, if it exists."""
    if storage.exists(uri):
        storage.delete(uri)
