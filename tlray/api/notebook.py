"""tlray in Python: data sets, runs and models as objects, which notebooks show as tables and pictures.

``import tlray`` has these names and loads this module when one of them is used first. Each call starts Ray
when it needs it and stops it again; after ``ray.init()`` all calls use that Ray. Progress goes to an
``observer``, by default the display by rich that the command line has.

A *place* is a path, a URI, or an object that has one: `Data`, `Run`, `Model`.
"""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from tlray import api, config, runtime, storage
from tlray.api.pictures import Picture, encoded
from tlray.data import image
from tlray.data.dataset import Dataset
from tlray.data.schema import IMAGE, class_names
from tlray.errors import ConfigError, DataError, PictureError, RunError
from tlray.observer import Observer
from tlray.training import rundir

if TYPE_CHECKING:
    import pandas as pd

    from tlray.serving.deploy import Server
    from tlray.tasks.base import Task

__all__ = [
    "Data", "Metrics", "Model", "Prediction", "Run", "ingest", "list_backbones", "load", "promote", "serve",
    "train", "tune",
]  # fmt: skip

Place: TypeAlias = "str | os.PathLike[str] | Data | Run | Model"

BATCH_SIZE = 64  # pictures that a model predicts at once
_SHOWN, _SIDE, _QUALITY = 12, 160, 75  # pictures of a data set in a notebook; px; of their JPEGs


class Metrics(dict[str, float]):
    """Metrics by name; `standard_errors` of those that come from few pictures."""

    def __init__(self, evaluation: Mapping[str, Any]) -> None:
        super().__init__(evaluation["metrics"])
        self.standard_errors: dict[str, float] = dict(evaluation.get("standard_errors") or {})
        self.split = str(evaluation["split"])
        self.rows: list[dict[str, Any]] = list(evaluation["rows"])
        """The prediction of each row beside its label, as in evaluation.json."""

    def __repr__(self) -> str:
        from tlray.observer.display import metrics

        return f"{self.split}: {metrics(self, self.standard_errors)}"


class Data:
    """A data set: what `ingest` wrote, Parquet files, or what ``datasets`` saved. Raises DataError."""

    def __init__(self, uri: Place) -> None:
        self._dataset = Dataset.open(_uri(uri))
        self.uri = self._dataset.uri

    @property
    def task(self) -> str:
        """The task that ingest read the labels for; of other data sets the first that the columns fit."""
        if self._dataset.task is not None:
            return self._dataset.task
        from tlray import tasks

        fitting = tasks.for_columns(self._dataset.schema.names)
        if not fitting:
            raise DataError(f"{self.uri}: no label column; there: {', '.join(self._dataset.schema.names)}")
        return fitting[0]

    @property
    def splits(self) -> dict[str, int]:
        """Number of rows by split."""
        return {split: self._dataset.num_rows(split) for split in self._dataset.splits}

    @property
    def labels(self) -> dict[str, list[str]]:
        """Class names by label column."""
        names = {column: class_names(self._dataset.schema, column) for column in self._dataset.schema.names}
        return {column: list(classes) for column, classes in names.items() if classes}

    @property
    def findings(self) -> str:
        """The pre-flight report of `ingest` as text; "" of other data sets."""
        report = storage.join(self.uri, "preflight.txt")
        return storage.read_bytes(report).decode() if storage.exists(report) else ""

    def __repr__(self) -> str:
        rows = ", ".join(f"{split} {number}" for split, number in self.splits.items())
        return f"Data({self.uri!r}: {self.task}, {rows}, {sum(map(len, self.labels.values()))} classes)"

    def _repr_html_(self) -> str:
        from tlray import tasks
        from tlray.ingestion import preview

        task = tasks.load({"name": self.task})
        split = self._dataset.splits[0]
        columns = [name for name in task.columns if name in self._dataset.schema.names]
        numbers = range(min(_SHOWN, self._dataset.num_rows(split)))
        rows = self._dataset.rows(split, list(numbers), [IMAGE, *columns]).to_pylist()
        names = {column: self._dataset.labels(column) for column in columns}
        kinds = {column: task.columns[column] for column in columns}
        shots = [preview.shot(row, task, kinds, names, _SIDE, _QUALITY) for row in rows]
        figures = "".join(_figure(shot["src"], shot["caption"]) for shot in shots)
        return f"<p>{html.escape(repr(self))}</p><div>{figures}</div>"


class Run:
    """A training or a search, finished or not, by its folder. Raises RunError where there is none."""

    def __init__(self, uri: Place) -> None:
        self.uri = storage.absolute(_uri(uri))
        if not storage.exists(storage.join(self.uri, rundir.CONFIG)):
            raise RunError(f"{_uri(uri)}: no run lies here; accepted: a run's folder, with config.json in it")

    @property
    def metrics(self) -> Metrics:
        """Metrics of the run's model on the validation split."""
        return Metrics(self._read(rundir.EVALUATION))

    @property
    def trials(self) -> pd.DataFrame:
        """Trials of a search, and its probes and averages, best first: a row each; of a training no row.

        Columns: trial, each setting by its dotted key, status, epochs, the goal by its name, seconds,
        winner, and equal: within one standard error of the winner.
        """
        import pandas as pd

        from tlray.report.run_files import equal, ranked

        search: dict[str, Any] = {}
        if storage.exists(storage.join(self.uri, rundir.TRIALS)):
            search = self._read(rundir.TRIALS)
        level: list[str] = []
        if search and storage.exists(storage.join(self.uri, rundir.EVALUATION)):
            level = equal(search, self.metrics.standard_errors)
        goal = search.get("goal", {}).get("name", "best")
        rows = ranked(search)
        keys = list(dict.fromkeys(key for row in rows for key in row.get("params", {})))
        columns = ["trial", *keys, "status", "epochs", goal, "seconds", "winner", "equal"]
        return pd.DataFrame(
            [
                {
                    "trial": row["id"], **row.get("params", {}), "status": row["status"],
                    "epochs": row["epochs"], goal: row["best"], "seconds": row.get("seconds"),
                    "winner": row["id"] == search.get("best"), "equal": row["id"] in level,
                }
                for row in rows
            ],
            columns=columns,
        )  # fmt: skip

    @property
    def report(self) -> str:
        """URI of report.html."""
        return storage.join(self.uri, rundir.REPORT)

    def __repr__(self) -> str:
        return f"Run({self.uri!r})"

    def _repr_html_(self) -> str:
        from tlray import report

        return report.summary(self.uri)

    def _read(self, name: str) -> dict[str, Any]:
        place = storage.join(self.uri, name)
        if not storage.exists(place):
            raise RunError(f"{place}: not found; the run is not finished")
        content: dict[str, Any] = storage.read_json(place)
        return content


class Prediction(dict[str, Any]):
    """The prediction of one picture, as the endpoint answers it; a notebook shows it drawn on the picture.

    The keys are those of the task, as in ``prediction["labels"][0]["label"]``; all values suit JSON.
    """

    def __init__(self, content: Mapping[str, Any], picture: bytes, task: Task, labels: list[str]) -> None:
        super().__init__(content)
        self._picture, self._task, self._labels = picture, task, labels

    def summary(self, top: int = 3) -> str:
        """The prediction in one line; of ranked labels the first ``top``."""
        return self._task.summary(self, top)

    def draw(self) -> Image.Image:
        """The picture (upright, RGB, source size) with the prediction drawn on it as its task does."""
        record = self._task.record(None, self)
        return self._task.draw(image.decode(self._picture), record, self._labels)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from tlray.report import thumbnail

        return _figure(thumbnail(self.draw()), self.summary())


class Model:
    """A model to predict with: the bundle at a URI, checked and loaded. Raises BundleError.

    ``device``: a torch device, or "auto" for CUDA where there is one.
    """

    def __init__(self, uri: str, device: str = "auto") -> None:
        from tlray.bundle.predictor import Predictor

        self.uri = storage.absolute(uri)
        self._predictor = Predictor(self.uri, device)

    @property
    def task(self) -> str:
        """Name of its task."""
        return self._predictor.task.name

    @property
    def labels(self) -> list[str]:
        """Class names in label order."""
        return list(self._predictor.labels)

    @property
    def stages(self) -> list[str]:
        """Names of the backbone's stages, input first, as `embed` takes them."""
        return self._predictor.stages

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best epoch, on the validation split of its training."""
        return dict(self._predictor.manifest.metrics)

    def __call__(self, picture: Picture, min_score: float | None = None) -> Prediction:
        """The prediction of one picture; see `predict`."""
        return self.predict([picture], min_score)[0]

    @overload
    def predict(
        self, pictures: Sequence[Picture], min_score: float | None = None, on_error: Literal["raise"] = ...
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, pictures: Sequence[Picture], min_score: float | None, on_error: Literal["return"]
    ) -> list[Prediction | PictureError]: ...

    def predict(
        self,
        pictures: Sequence[Picture],
        min_score: float | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Sequence[Prediction | PictureError]:
        """The predictions of pictures, in order.

        A picture is a path, a URI, the bytes of a file, a PIL image, or an array: uint8, (H, W, 3) RGB or
        (H, W) grey. ``min_score``: detections from this score on, by default from the model's threshold on.
        Raises DataError for what is none of these, PictureError for a file that is no usable picture; with
        ``on_error="return"`` that error takes the place of its prediction.
        """
        task = self._predictor.task
        if min_score is not None and not task.detects:
            raise ConfigError(
                f"min_score = {min_score:g}: accepted: none, {task.name} does not predict objects with scores"
            )
        answers: list[Prediction | PictureError] = []
        for names, files in _batches(pictures):
            for name, file, result in zip(
                names, files, self._predictor.predict(files, on_error="return"), strict=True
            ):
                if not isinstance(result, PictureError):
                    answers.append(Prediction(task.served(result, min_score), file, task, self.labels))
                elif on_error == "return":
                    answers.append(result)
                else:
                    raise PictureError(result.kind, f"{name}: {result}")
        return answers

    def embed(self, pictures: Sequence[Picture], stage: str | None = None) -> np.ndarray:
        """The embeddings of pictures, (N, D) float32; pictures as in `predict`, one or more.

        ``stage``: a stage of the backbone, its output averaged over the picture; None: the embedding that the
        task trains, else the final features. Raises as `predict`, ConfigError for an unknown stage.
        """
        vectors: list[np.ndarray] = []
        for names, files in _batches(pictures):
            for name, vector in zip(
                names, self._predictor.embed(files, stage, on_error="return"), strict=True
            ):
                if isinstance(vector, PictureError):
                    raise PictureError(vector.kind, f"{name}: {vector}")
                vectors.append(vector)
        if not vectors:
            raise DataError("pictures: an empty list; accepted: one or more")
        return np.stack(vectors)

    def evaluate(
        self, data: Place, split: str = "test", *, observer: Observer | None = None, verbose: bool = False
    ) -> Metrics:
        """Metrics on a split of a data set, each row counted once. Raises DataError."""
        with _shown(f"Evaluate {self.uri}", observer) as show:
            return Metrics(api.evaluate(self.uri, _uri(data), split, show, verbose=verbose))

    def __repr__(self) -> str:
        backbone = self._predictor.manifest.backbone.get("name")
        return f"Model({self.uri!r}: {self.task}, {backbone}, {len(self.labels)} classes)"


def ingest(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    observer: Observer | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Data:
    """Make a data set of labelled pictures: check them, divide them into splits, write Parquet.

    ``settings``: task, format, max_side, validation, test, seed, strict, max_bad_share, merge_classes,
    one_class; see `tlray.ingestion.ingest.ingest`. A data set at ``target`` is replaced. Raises DataError.
    """
    with _shown(f"Ingest {source}", observer) as show:
        api.ingest(os.fspath(source), os.fspath(target), show, verbose, **settings)
    return Data(target)


def train(
    data: Place | None = None,
    *,
    backbone: str | None = None,
    epochs: int | None = None,
    name: str | None = None,
    recipe: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    fresh: bool = False,
    observer: Observer | None = None,
    verbose: bool = False,
) -> Run:
    """Fine-tune one model. With the name of an unfinished run, resume it.

    ``recipe``: a YAML file as in jobs/recipes, whose settings the other arguments replace; without one the
    defaults hold, and the task is that of the data. ``overrides``: settings by dotted key, as in
    ``{"optim.lr": 0.01, "input.size": 96}``. ``fresh``: delete the run of this name and start again.
    Raises TlrayError, one line with the value and what is accepted.
    """
    runtime.prepare(verbose)
    settings = _settings(data, backbone, epochs, name, recipe, overrides)
    with _shown(f"Train {settings.run_uri}", observer) as show:
        return Run(api.train(settings, show, verbose, fresh)["run"])


def tune(
    data: Place | None = None,
    *,
    backbone: str | None = None,
    epochs: int | None = None,
    name: str | None = None,
    recipe: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    fresh: bool = False,
    scheduler: Any = None,
    searcher: Any = None,
    callbacks: Sequence[Any] = (),
    stop: Any = None,
    observer: Observer | None = None,
    verbose: bool = False,
) -> Run:
    """Search for the best model; arguments as of `train`.

    Without a ``search.space`` of its own it searches over freeze depth and learning rate.
    ``scheduler``, ``searcher``, ``callbacks`` and ``stop`` are Ray Tune's, in place of what the configuration
    says: see `tlray.search.tuner.run`. Raises ConfigError for a scheduler that cannot work here.
    """
    runtime.prepare(verbose)
    settings = _settings(data, backbone, epochs, name, recipe, overrides)
    options = None
    if scheduler or searcher or callbacks or stop:
        from tlray.search.tuner import TuneOptions

        options = TuneOptions(scheduler, searcher, callbacks, stop)
    with _shown(f"Search {settings.run_uri}", observer) as show:
        return Run(api.tune(settings, show, verbose, fresh, options)["run"])


def load(source: Place, models: str = "models", device: str = "auto") -> Model:
    """The model of a bundle, of a run (its best), or of a name in the registry: ``mine``, ``mine@3``.

    ``models``: the registry, a folder or URI. Raises RegistryError, BundleError.
    """
    runtime.prepare()
    return Model(api.bundle_of(_uri(source), models), device)


def promote(source: Place, name: str, models: str = "models") -> str:
    """Copy a model into the registry and make it live; returns ``NAME@VERSION``. ``source``: as of `load`."""
    return f"{name}@{api.promote(_uri(source), name, models)['version']}"


def serve(
    *sources: Place,
    models: str = "models",
    observer: Observer | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Server:
    """Start the HTTP endpoint of one model or more; returns when it answers. ``sources``: as of `load`.

    Use it as a context, ``with tlray.serve("mine") as server: server.url``, or call ``server.stop()``.
    ``settings``: those below ``serve:`` of a recipe, as ``max_replicas=4``; the port is any free one unless
    it is set. Raises RegistryError, BundleError, ConfigError, RunError.
    """
    refs = [_uri(source) for source in sources]
    changes = {f"serve.{key}": value for key, value in {"port": 0, **settings}.items()}
    serving = config.Config().override(changes, "tlray.serve").serve
    with _shown(f"Serve {', '.join(refs)}", observer) as show:
        return api.serve(refs, serving, show, models, verbose)


def list_backbones(pattern: str = "*", pretrained: bool = True) -> list[str]:
    """Names for ``backbone=`` that match a shell pattern, as ``"resnet*"``.

    ``pretrained``: only those with weights.
    """
    runtime.prepare()
    from tlray.models import backbone

    return backbone.names(pattern, pretrained)


def _batches(pictures: Sequence[Picture]) -> Iterator[tuple[list[str], list[bytes]]]:
    """Names and files of `BATCH_SIZE` pictures at a time. Raises DataError for a single picture."""
    array = isinstance(pictures, np.ndarray) and (pictures.ndim == 2 or pictures.shape[2:] == (3,))
    if array or isinstance(pictures, str | bytes | bytearray | os.PathLike | Image.Image):
        raise DataError(
            f"pictures: one {type(pictures).__name__}; accepted: a list; one picture alone: model(picture)"
        )
    for first in range(0, len(pictures), BATCH_SIZE):
        files = [encoded(picture) for picture in pictures[first : first + BATCH_SIZE]]
        yield [name for name, _ in files], [file for _, file in files]


def _uri(place: Place) -> str:
    return place.uri if isinstance(place, Data | Run | Model) else os.fspath(place)


@contextlib.contextmanager
def _shown(title: str, observer: Observer | None) -> Iterator[Observer]:
    """The observer, or where there is none a display for one step."""
    if observer is not None:
        yield observer
        return
    from tlray.observer.display import Display

    with Display() as show, show.step(title, quiet_start=True):
        yield show


def _settings(
    data: Place | None,
    backbone: str | None,
    epochs: int | None,
    name: str | None,
    recipe: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any] | None,
) -> config.Config:
    """The configuration that the arguments of `train` and `tune` mean. Raises ConfigError."""
    base = config.load(None if recipe is None else os.fspath(recipe))
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data.uri"] = _uri(data)
        if recipe is None and storage.exists(_uri(data)):
            changes["task.name"] = (data if isinstance(data, Data) else Data(data)).task
    if backbone is not None:
        changes["model.backbone"] = backbone
        if base.model.weights in ("builtin", "timm"):
            from tlray.models import weights

            changes["model.weights"] = weights.default(backbone)
    if epochs is not None:
        changes["train.epochs"] = epochs
    if name is not None:
        changes["name"] = name
    origins = dict.fromkeys(changes, "argument") | dict.fromkeys(overrides or {}, "overrides")
    return base.override({**changes, **(overrides or {})}, origins)


def _figure(src: str, caption: str) -> str:
    """A picture with a line below it, as HTML."""
    return (
        '<figure style="display: inline-block; vertical-align: top; margin: 4px">'
        f'<img src="{html.escape(src)}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
