"""The verbs that are more than one call, for the command line, the quickstart and notebooks alike.

A run of `train` or `tune` ends with the winner's evaluation on the validation split and the report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from tlray import runtime, storage
from tlray.config import Config
from tlray.errors import ConfigError, DataError, spelling_hint
from tlray.observer import Observer
from tlray.storage import targets
from tlray.training import rundir


def ingest(
    source: str,
    target: str,
    show: Observer,
    verbose: bool = False,
    session: contextlib.ExitStack | None = None,
    **settings: Any,
) -> Any:
    """`tlray.ingestion.ingest.ingest` with Ray started only once source and settings are known to be sound.

    ``session``: the Ray session lives in this stack and outlasts the call.
    """
    runtime.prepare(verbose)
    from tlray.ingestion.ingest import ingest as run

    with contextlib.ExitStack() as own:
        stack = own if session is None else session

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "list":  # all checks are behind us, and Ray is needed next
                stack.enter_context(runtime.session(verbose))
            show.progress(stage, done, total)

        return run(source, target, progress=progress, **settings)


def train(config: Config, show: Observer, verbose: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Train, evaluate, report: the result of `fit.fit`, and ``evaluation`` (metrics) and ``report``.

    Goes on with the run of this name, or refuses where that was another one; ``fresh``: begins anew.
    """
    check(config)
    targets.check_folder(config.run_uri)
    runtime.prepare(verbose)
    from tlray.training import fit as training
    from tlray.training import resume

    config = training.resolve_config(config, fresh, show.event)
    model = training.check(config)
    notes = [] if fresh else resume.check_training(config, model.fingerprint)
    notes += model.notes
    show.begin()
    for note in notes:
        show.event({"kind": "note", "run": config.run_uri, "text": note})
    with runtime.session(verbose), runtime.events(show.event) as emit:
        found = training.fit(config, emit, fresh=fresh, checked=True)
        return found | conclude(config, found["bundle"], show)


def tune(config: Config, show: Observer, verbose: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Search, evaluate the winner, report: ``bundle``, ``trials``, ``best``, ``evaluation``, ``report``.

    Goes on with the search of this name, or refuses where that was another one; ``fresh``: begins anew.
    """
    check(config)
    targets.check_folder(config.run_uri)
    if config.search.cache:
        targets.check_folder(config.search.cache)
    runtime.prepare(verbose)
    from tlray import search
    from tlray.report.run_files import equal
    from tlray.training import fit as training

    given, config = config, training.resolve_config(config, fresh)
    training.check(config)
    show.begin()
    with runtime.session(verbose):
        result = search.tune(given, show.event, fresh)
        story = storage.read_json(storage.join(config.run_uri, rundir.TRIALS))
        found = {"run": config.run_uri, "bundle": result.bundle, **story}
        found |= conclude(config, result.bundle, show)
        return found | {"equal": equal(found, found["standard_errors"])}


def explain(config: Config, verbose: bool = False) -> list[dict[str, Any]]:
    """What `tune` would do and cost: plans of its groups of trials, see search/cost.py."""
    check(config)
    runtime.prepare(verbose)
    from tlray import search

    return search.explain(config)


def rank(
    config: Config, backbones: Sequence[str], rows: int, show: Observer, verbose: bool = False
) -> list[dict[str, Any]]:
    """Scores of backbones on the user's pictures, best first; see search/transferability.py."""
    check(config)
    runtime.prepare(verbose)
    from tlray.search.transferability import rank as run

    return [score.to_dict() for score in run(config, backbones, rows, show.progress)]


def check(config: Config) -> None:
    """What can be told wrong without torch or Ray, whose imports take seconds."""
    from tlray.training import tracking

    if not config.data.uri:
        raise ConfigError(
            "data.uri = '' (configuration): accepted: the folder or s3:// URI that `tlray ingest` made"
        )
    if not storage.exists(config.data.uri):
        raise DataError(
            f"data.uri = {config.data.uri!r}: not found; accepted: the folder or s3:// URI that "
            f"`tlray ingest` made{spelling_hint(config.data.uri)}"
        )
    tracking.check(config)


def conclude(config: Config, bundle: str, show: Observer) -> dict[str, Any]:
    """Leave evaluation.json of the validation split and report.html in the run's folder."""
    from tlray import report
    from tlray.inference.evaluate import evaluate

    found = evaluate(bundle, config.data.uri, config.data.validation_split, show.progress)
    storage.write_json(storage.join(config.run_uri, rundir.EVALUATION), found)
    return {
        "evaluation": found["metrics"], "standard_errors": found["standard_errors"],
        "pictures": len(found["rows"]),
        "report": report.write(config.run_uri),
    }  # fmt: skip


def bundle_of(ref: str, models: str) -> str:
    """URI of the bundle that a bundle, a run (its best) or a name of the registry means.

    Raises RegistryError for an unknown name, BundleError where a place holds no bundle.
    """
    from tlray.bundle import registry

    return registry.find(ref, models).uri
