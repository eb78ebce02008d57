"""The deployment of one model: dynamic batching around a predictor, which runs in one thread.

A batch is made of single pictures, which may come from several requests. Torch is imported only when a
replica starts, so the process that builds the application need not load it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ray import serve

from tlray.bundle.manifest import WEIGHTS
from tlray.config import Serving
from tlray.data import image
from tlray.errors import BundleError, PictureError, StorageError, nearest
from tlray.serving.gallery import Gallery, cosine
from tlray.serving.parameters import BAD
from tlray.serving.protocol import RETRY_AFTER_S, ModelCard, Refusal, Reply, Size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model to serve: its bundle and the name that clients use."""

    name: str
    version: int | None  # None: a bundle that is not in the registry
    uri: str

    @property
    def key(self) -> str:
        """The unique name of the model on this server: ``pets@3``."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


class PredictorLike(Protocol):
    """The part of `tlray.bundle.predictor.Predictor` that serving uses.

    ``model_s`` may be missing: seconds that the model took in the last call, without rendering.
    """

    manifest: Any
    task: Any
    preprocess: Any
    labels: Any

    @property
    def stages(self) -> list[str]:
        """Names that `embed` accepts as ``stage``."""

    def predict(self, pictures: Sequence[bytes], on_error: Any = ...) -> Sequence[Any]:
        """One prediction, or a PictureError, per picture."""

    def embed(self, pictures: Sequence[bytes], stage: str | None = ..., on_error: Any = ...) -> Sequence[Any]:
        """One vector, or a PictureError, per picture."""


Loader = Callable[[Served, Serving], PredictorLike]


def load_predictor(served: Served, settings: Serving) -> PredictorLike:
    """Load the predictor of a bundle, with the CPUs and GPUs that the replica has."""
    import torch

    from tlray.bundle.predictor import Predictor

    torch.set_num_threads(max(1, math.floor(settings.cpus_per_replica)))

    predictor = Predictor(served.uri, "cuda" if settings.gpus_per_replica else "cpu")
    limit = int(settings.max_megapixels * 1_000_000)
    # This changes which pictures are refused, not how they are rendered.
    predictor.preprocess = predictor.preprocess.model_copy(update={"max_pixels": limit})
    return predictor


class Output(NamedTuple):
    """What the predictor shall compute for a picture: its prediction, or its embedding (at a stage)."""

    embedding: bool = False
    stage: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result for one picture, and the times of its batch."""

    result: Any  # prediction or embedding; None where there is an error
    error: PictureError | str | None  # str: the predictor itself failed
    start: float  # time.perf_counter at the start of the batch
    batch_s: float  # seconds of the whole batch
    model_s: float | None  # the model's share of batch_s; None: the predictor does not measure it


class ServedModel:
    """A replica of the model. The constructor loads the predictor and warms it up: with one picture and with
    a batch of the largest size.

    Verbs return a Refusal for a mistake of the client or a passing failure, because Serve would log a raised
    one as a failure of the replica. Raises BundleError where the bundle cannot be used or the warm-up fails.
    """

    def __init__(self, served: Served, settings: Serving, load: Loader = load_predictor) -> None:
        self.served, self.settings = served, settings
        # One thread: batches run one after the other, and torch's number of threads is per calling thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._predictor = self._thread.submit(load, served, settings).result()
        self._gallery = self._open_gallery()
        self._thread.submit(self._warm_up).result()

    def _open_gallery(self) -> Gallery | None:
        if not self._predictor.task.gallery:
            return None
        weights = self._predictor.manifest.checksums[WEIGHTS]
        return Gallery(self.settings.gallery, self.served.name, weights)

    def reconfigure(self, batching: dict[str, Any]) -> None:
        """Take new values of max_batch_size and batch_wait_s; Serve calls this, also while requests run."""
        batched: Any = self._one
        batched.set_max_batch_size(batching["max_batch_size"])
        batched.set_batch_wait_timeout_s(batching["batch_wait_s"])

    async def card(self) -> dict[str, Any]:
        """The `ModelCard` as plain values."""
        manifest, (width, height) = self._predictor.manifest, self._predictor.preprocess.size
        return ModelCard(
            name=self.served.name,
            version=self.served.version,
            task=manifest.task["name"],
            labels=list(self._predictor.labels),
            metrics=dict(manifest.metrics),
            input=Size(width=width, height=height),
        ).model_dump()

    async def predict(self, pictures: list[bytes], top: int, min_score: float | None) -> Reply | Refusal:
        """Encoded pictures of one request -> predictions.

        ``top``: most labels of a picture. ``min_score``: lowest score of a detected object; None: the task's
        threshold.
        """
        task = self._predictor.task
        if min_score is not None and not task.detects:
            return self._no_finds(min_score)
        reply = await self._ask(pictures, Output())
        served = (task.served(prediction, min_score) for prediction in reply["results"])
        return {**reply, "results": [_cut(prediction, top) for prediction in served]}

    async def embed(self, pictures: list[bytes], stage: str | None) -> Reply | Refusal:
        """Encoded pictures -> embeddings, lists of numbers."""
        stages = self._predictor.stages
        if stage is not None and stage not in stages:
            return Refusal(400, "unknown_stage", f"stage {stage[:40]!r}: {nearest(stage, stages)}")
        reply = await self._ask(pictures, Output(True, stage))
        return {**reply, "results": [x_D.tolist() for x_D in reply["results"]]}

    async def draw(self, pictures: list[bytes], min_score: float | None) -> Reply | Refusal:
        """One encoded picture -> PNG with its prediction drawn over it; ``min_score`` as in `predict`."""
        task, limit = self._predictor.task, self._predictor.preprocess.max_pixels
        if min_score is not None and not task.detects:
            return self._no_finds(min_score)

        def draw(predictions: list[Any]) -> bytes:
            record = task.record(None, task.served(predictions[0], min_score))
            out = io.BytesIO()
            task.draw(image.decode(pictures[0], limit), record, self._predictor.labels).save(out, "PNG")
            return out.getvalue()

        return await self._then(await self._ask(pictures, Output()), draw)

    async def as_png(self, pictures: list[bytes]) -> Reply | Refusal:
        """One encoded picture -> PNG that is the prediction itself, for tasks that predict pictures."""
        task = self._predictor.manifest.task["name"]

        def image_of(predictions: list[Any]) -> bytes:
            png: bytes | None = self._predictor.task.image_of(predictions[0])
            if png is None:
                why = f"a prediction of {task} is no picture"
                raise Refusal(406, "not_acceptable", f"Accept: image/png: {why}; accepted: application/json")
            return png

        return await self._then(await self._ask(pictures, Output()), image_of)

    async def enroll(self, pictures: list[bytes], person: str) -> Reply | Refusal:
        """Add pictures of a person to the gallery -> the number that it now has of that person.

        If one picture is bad, none is added.
        """
        gallery = self._gallery
        if gallery is None:
            return self._no_gallery()

        def enrol(embeddings: list[Any]) -> int:
            for picture, x_D in zip(pictures, embeddings, strict=True):
                gallery.enrol(person, picture, x_D)
            return gallery.count(person)

        return await self._then(await self._ask(pictures, Output(True)), enrol)

    async def identify(self, pictures: list[bytes], top: int) -> Reply | Refusal:
        """Encoded pictures -> for each who it shows, and the ``top`` most similar people of the gallery."""
        gallery = self._gallery
        if gallery is None:
            return self._no_gallery()

        def search(embeddings: list[Any]) -> dict[str, Any]:
            identities = []
            for ranked in gallery.search(embeddings, top):
                accepted = self._same(ranked[0].similarity if ranked else -math.inf)
                identities.append(
                    {
                        "person": ranked[0].person if accepted else None,
                        "accepted": accepted,
                        "similar": [match._asdict() for match in ranked],
                    }
                )
            return {"identities": identities, "threshold": self._threshold}

        return await self._then(await self._ask(pictures, Output(True)), search)

    async def verify(self, pictures: list[bytes], person: str | None) -> Reply | Refusal:
        """Two pictures, or one picture and a person's name -> similarity, and whether it is one person."""
        gallery = self._gallery
        if gallery is None:
            return self._no_gallery()

        def compare(embeddings: list[Any]) -> dict[str, Any]:
            if person is None:
                similarity: float | None = cosine(*embeddings)
            else:
                similarity = gallery.best(embeddings[0], person)
            if similarity is None:
                raise _nobody(person)
            return {
                "similarity": similarity,
                "same": self._same(similarity),
                "threshold": self._threshold,
            }

        return await self._then(await self._ask(pictures, Output(True)), compare)

    async def people(self) -> Reply | Refusal:
        """The number of enrolled pictures of each person."""
        gallery = self._gallery
        return self._no_gallery() if gallery is None else await self._then(_NONE, lambda _: gallery.people())

    async def remove(self, person: str) -> Reply | Refusal:
        """Forget a person -> the number of pictures that were enrolled of that person."""
        gallery = self._gallery
        if gallery is None:
            return self._no_gallery()

        def remove(_: Any) -> int:
            number = gallery.remove(person)
            if not number:
                raise _nobody(person)
            return number

        return await self._then(_NONE, remove)

    @property
    def _threshold(self) -> float | None:
        threshold: float | None = self._predictor.manifest.task.get("threshold")
        return threshold

    def _same(self, similarity: float) -> bool | None:
        return None if self._threshold is None else similarity >= self._threshold

    def _no_finds(self, min_score: float) -> Refusal:
        task = self._predictor.manifest.task["name"]
        why = f"a prediction of {task} is no list of finds"
        return Refusal(400, BAD, f"query min_score = {min_score:g}: accepted: none, {why}")

    def _no_gallery(self) -> Refusal:
        from tlray import tasks

        with_gallery = ", ".join(name for name in tasks.names() if tasks.load({"name": name}).gallery)
        task = self._predictor.manifest.task["name"]
        why = f"its task, {task}, has no gallery; tasks with one: {with_gallery}"
        return Refusal(404, "no_gallery", f"model {self.served.key!r}: {why}")

    async def _ask(self, pictures: list[bytes], output: Output) -> Reply:
        """Put each picture into the next batch, wait for all of them, and collect the results."""
        outcomes = await asyncio.gather(*(self._one((output, picture)) for picture in pictures))
        batches = {o.start: o for o in outcomes}.values()  # one thread: no two batches start at the same time
        model_s = [o.model_s for o in batches if o.model_s is not None]
        whole_s = sum(o.batch_s for o in batches)
        timed = len(model_s) == len(batches)
        return Reply(
            results=[o.result for o in outcomes if o.error is None],
            bad=[(i, o.error) for i, o in enumerate(outcomes) if isinstance(o.error, PictureError)],
            fault=next((o.error for o in outcomes if isinstance(o.error, str)), None),
            render_s=whole_s - sum(model_s) if timed else None,
            model_s=sum(model_s) if timed else whole_s,
        )

    async def _then(self, reply: Reply, work: Callable[[list[Any]], Any]) -> Reply | Refusal:
        """Replace the results of a reply by ``work(results)``, which runs in a thread.

        A reply with a bad picture or a fault stays as it is.
        """
        if reply["bad"] or reply["fault"] is not None:
            return reply
        try:
            return {**reply, "results": await asyncio.to_thread(work, reply["results"])}
        except Refusal as refusal:
            return refusal
        except StorageError as error:
            logger.warning("%s: gallery: %s", self.served.key, error)
            return Refusal(
                503, "gallery_away", "the gallery is away; the server's log says why", RETRY_AFTER_S
            )

    @serve.batch
    async def _one(self, items: list[tuple[Output, bytes]]) -> list[Outcome]:
        """@serve.batch turns many calls with one picture each into one call with a list of pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)

    def _run(self, items: list[tuple[Output, bytes]]) -> list[Outcome]:
        """Run pictures of several calls in the predictor's thread, those with the same output together."""
        outcomes: dict[int, Outcome] = {}
        for output in dict.fromkeys(output for output, _ in items):
            positions = [i for i, item in enumerate(items) if item[0] == output]
            pictures = [items[i][1] for i in positions]
            outcomes |= zip(positions, self._run_batch(output, pictures), strict=True)
        return [outcomes[i] for i in range(len(items))]

    def _run_batch(self, output: Output, pictures: list[bytes]) -> list[Outcome]:
        """Never raises: an error stands in the outcome of its own picture."""
        start = time.perf_counter()
        results: list[Any]
        try:
            if output.embedding:
                results = list(self._predictor.embed(pictures, output.stage, on_error="return"))
            else:
                results = list(self._predictor.predict(pictures, on_error="return"))
        except Exception as error:
            # A fault of the predictor, perhaps caused by one picture: the others are predicted without it.
            if len(pictures) > 1:
                logger.warning("%s: a batch of %d failed, runs one by one", self.served.key, len(pictures))
                return [self._run_batch(output, [picture])[0] for picture in pictures]
            logger.exception("%s: the predictor failed", self.served.key)
            results = [f"{type(error).__name__}: {error}"]
        batch_s = time.perf_counter() - start
        model_s = getattr(self._predictor, "model_s", None)
        return [
            Outcome(
                result=None if isinstance(result, (PictureError, str)) else result,
                error=result if isinstance(result, (PictureError, str)) else None,
                start=start,
                batch_s=batch_s,
                model_s=model_s,
            )
            for result in results
        ]

    def _warm_up(self) -> None:
        """Do now what the first requests would otherwise wait for: memory allocation, choice of kernels,
        compilation."""
        from PIL import Image

        out = io.BytesIO()
        Image.effect_mandelbrot(self._predictor.preprocess.size, (-2, -1.2, 0.8, 1.2), 32).save(out, "JPEG")
        for size in sorted({1, self.settings.max_batch_size}):
            for result in self._predictor.predict([out.getvalue()] * size):
                if isinstance(result, Exception):
                    raise BundleError(f"{self.served.uri}: warm-up with {size} pictures failed: {result}")


_NONE = Reply(results=[], bad=[], fault=None, render_s=None, model_s=0.0)  # for a request without pictures


def _nobody(person: str | None) -> Refusal:
    return Refusal(404, "unknown_person", f"person {(person or '')[:100]!r}: nobody of this name is enrolled")


def _cut(prediction: dict[str, Any], top: int) -> dict[str, Any]:
    """The prediction with at most ``top`` labels, if it is a ranked list of labels."""
    ranked = prediction.get("labels")
    return {**prediction, "labels": ranked[:top]} if isinstance(ranked, list) else prediction
