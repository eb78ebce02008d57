"""The verbs that take more than one call, for the command line, the quickstart and notebooks alike.

They take settings and an observer, start Ray once all checks have passed, and return plain values.
`notebook` wraps them in objects for `import tlray`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlray import runtime, storage
from tlray.config import Config, Serving
from tlray.errors import ConfigError, DataError, spelling_hint
from tlray.observer import Observer
from tlray.storage import targets
from tlray.training import rundir

if TYPE_CHECKING:
    from tlray.ingestion.ingest import IngestResult
    from tlray.search.tuner import TuneOptions
    from tlray.serving.deploy import Server


def ingest(
    source: str,
    target: str,
    show: Observer,
    verbose: bool = False,
    session: contextlib.ExitStack | None = None,
    **settings: Any,
) -> IngestResult:
    """Make a data set with the settings of `tlray.ingestion.ingest.ingest`; Ray starts after its checks.

    ``session``: a stack that keeps Ray running after this call.
    """
    runtime.prepare(verbose)
    from tlray.ingestion.ingest import ingest as make

    with contextlib.ExitStack() as own:
        stack = own if session is None else session

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "list":  # all checks have passed, and Ray is needed next
                stack.enter_context(runtime.session(verbose))
            show.progress(stage, done, total)

        return make(source, target, progress=progress, **settings)


def train(config: Config, show: Observer, verbose: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Train a model, evaluate it on the validation split, write the report.

    Returns what `fit.fit` and `conclude` do. Resumes the run of this name, and raises ConfigError where its
    data or settings were others. ``fresh``: delete that run and start again.
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
        result = training.fit(config, emit, fresh=fresh, checked=True)
        return result | conclude(config, result["bundle"], show)


def tune(
    config: Config,
    show: Observer,
    verbose: bool = False,
    fresh: bool = False,
    options: TuneOptions | None = None,
) -> dict[str, Any]:
    """Search for the best model, evaluate it on the validation split, write the report.

    Returns run, bundle, the content of trials.json, what `conclude` does, and ``equal``: trials within one
    standard error of the winner. Resumes the search of this name, and raises ConfigError where its data or
    settings were others. ``fresh``: delete that search and start again. ``options``: of Ray Tune's, see
    `tlray.search.tuner.run`.
    """
    check(config)
    targets.check_folder(config.run_uri)
    if config.search.cache:
        targets.check_folder(config.search.cache)
    runtime.prepare(verbose)
    from tlray import search
    from tlray.report.run_files import equal
    from tlray.training import fit as training

    resolved = training.resolve_config(config, fresh)
    training.check(resolved)
    show.begin()
    with runtime.session(verbose):
        bundle = search.tune(config, show.event, fresh, options).bundle
        trials = storage.read_json(storage.join(resolved.run_uri, rundir.TRIALS))
        result = {"run": resolved.run_uri, "bundle": bundle, **trials, **conclude(resolved, bundle, show)}
        return result | {"equal": equal(result, result["standard_errors"])}


def explain(config: Config, verbose: bool = False) -> list[dict[str, Any]]:
    """Measure what `tune` would cost: the plan of each group of trials; see search/cost.py."""
    check(config)
    runtime.prepare(verbose)
    from tlray import search

    return search.explain(config)


def rank(
    config: Config, backbones: Sequence[str], rows: int, show: Observer, verbose: bool = False
) -> list[dict[str, Any]]:
    """Score backbones on the training pictures, best first; see search/transferability.py."""
    check(config)
    runtime.prepare(verbose)
    from tlray.search import transferability

    return [score.to_dict() for score in transferability.rank(config, backbones, rows, show.progress)]


def evaluate(
    ref: str, data: str, split: str, show: Observer, models: str = "models", verbose: bool = False
) -> dict[str, Any]:
    """Evaluate a model on a split; what `inference.evaluate.evaluate` returns, and ``bundle``.

    ``ref``: a bundle, a run or a model's name; see `bundle_of`.
    """
    from tlray.data.dataset import Dataset

    uri, data = bundle_of(ref, models), storage.absolute(data)
    Dataset.open(data).group_rows(split)  # a wrong place or split is an error before torch is imported
    runtime.prepare(verbose)
    from tlray.inference import evaluate as evaluation

    evaluation.check(uri, data, split)
    with runtime.session(verbose):
        return {"bundle": uri, **evaluation.evaluate(uri, data, split, show.progress)}


def predict(
    ref: str,
    places: Sequence[str],
    splits: Sequence[str],
    out: str,
    show: Observer,
    models: str = "models",
    verbose: bool = False,
) -> dict[str, Any]:
    """Predict a data set, or many pictures, into Parquet at ``out``; what `inference.batch.predict` returns.

    Pictures that ``out`` has already are not predicted again. ``splits``: of the data set, none for all.
    """
    uri = bundle_of(ref, models)
    targets.check_folder(out)
    runtime.prepare(verbose)
    from tlray.inference import batch, inputs

    source = inputs.find(places, splits)
    with runtime.session(verbose):
        return batch.predict(uri, source, out, show.progress)


def embed(
    ref: str,
    data: str,
    splits: Sequence[str],
    out: str,
    show: Observer,
    stage: str | None = None,
    weights: str | None = None,
    size: int | None = None,
    models: str = "models",
    verbose: bool = False,
) -> dict[str, Any]:
    """Embed every picture of a data set or folder into Parquet at ``out``; what `inference.embed.embed` does.

    ``ref`` is a bare backbone where ``weights`` are named or built in, else as in `evaluate`. ``size``: side
    of a bare backbone's input, px; ``stage``: a stage of the backbone, None for the final features.
    """
    targets.check_folder(out)
    runtime.prepare(verbose)
    from tlray.inference import embed as embedding
    from tlray.inference import inputs
    from tlray.models.weights import BUILTIN

    if weights is not None or ref in BUILTIN:
        embedder = embedding.Embedder.backbone(ref, weights, size)
    elif size is not None:
        raise ConfigError(f"size = {size}: {ref} is a bundle, which has its own; accepted: a backbone's name")
    else:
        embedder = embedding.Embedder(storage.absolute(bundle_of(ref, models)))
    source = inputs.find([data], splits)
    with runtime.session(verbose):
        return embedding.embed(embedder, source, out, stage, show.progress)


def promote(ref: str, name: str, models: str = "models") -> dict[str, Any]:
    """Copy a model into the registry and make it live. ``ref``: as in `evaluate`.

    Returns ``name``, ``version``, ``bundle`` (URI of the copy) and ``from`` (URI of the original).
    """
    from tlray.bundle import registry

    source = bundle_of(ref, models)
    version = registry.promote(source, models, name)
    copy = registry.resolve(models, f"{name}@{version}")[0]
    return {"name": name, "version": version, "bundle": copy, "from": source}


def serve(
    refs: Sequence[str], settings: Serving, show: Observer, models: str = "models", verbose: bool = False
) -> Server:
    """Start the HTTP endpoint of one or more models; returns when it answers. ``refs``: as in `evaluate`."""
    runtime.prepare(verbose)
    from tlray.serving import deploy

    served = deploy.resolve(refs, models)
    deploy.check_gallery(served, settings)
    show.begin()
    return deploy.start(served, settings, verbose=verbose)


def check(config: Config) -> None:
    """Raise for mistakes that can be found without torch and Ray, whose imports take seconds."""
    from tlray.training import tracking

    if not storage.exists(config.data.required_uri()):
        raise DataError(
            f"data.uri = {config.data.uri!r}: not found; accepted: the folder or s3:// URI that "
            f"`tlray ingest` made{spelling_hint(config.data.uri)}"
        )
    tracking.check(config)


def conclude(config: Config, bundle: str, show: Observer) -> dict[str, Any]:
    """Evaluate a run's model on the validation split; write evaluation.json and report.html into its folder.

    Returns ``evaluation`` (the metrics), ``standard_errors``, ``pictures`` (their number), ``report`` (URI).
    """
    from tlray import report
    from tlray.inference.evaluate import evaluate

    evaluation = evaluate(bundle, config.data.uri, config.data.validation_split, show.progress)
    storage.write_json(storage.join(config.run_uri, rundir.EVALUATION), evaluation)
    return {
        "evaluation": evaluation["metrics"], "standard_errors": evaluation["standard_errors"],
        "pictures": len(evaluation["rows"]),
        "report": report.write(config.run_uri),
    }  # fmt: skip


def bundle_of(ref: str, models: str) -> str:
    """URI of the bundle that a bundle, a run (its best) or a name of the registry means.

    Raises RegistryError for an unknown name, BundleError where a place holds no bundle.
    """
    from tlray.bundle import registry

    return registry.find(ref, models).uri
