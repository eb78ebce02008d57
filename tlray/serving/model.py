"""The deployment of one model: dynamic batching around a predictor, one thread that renders and runs it.

Each picture is one element of a batch, whichever request it came with. Torch is imported where a replica
starts and nowhere else, so that this module can be named without it.
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
from tlray.serving import gallery
from tlray.serving.parameters import BAD
from tlray.serving.protocol import RETRY_AFTER_S, ModelCard, Refusal, Reply, Size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model to serve: where its bundle is, and what it is called from outside."""

    name: str
    version: int | None  # None: a bundle that is not in the registry
    uri: str

    @property
    def key(self) -> str:
        """Name that no other served model has: ``pets@3``."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


class PredictorLike(Protocol):
    """What serving needs of `tlray.bundle.predictor.Predictor`.

    ``model_s``, where there, says how long the model took for its part of the last call.
    """

    manifest: Any
    task: Any
    preprocess: Any
    labels: Any

    @property
    def stages(self) -> list[str]:
        """What `embed` takes for a stage."""

    def predict(self, pictures: Sequence[bytes], on_error: Any = ...) -> Sequence[Any]:
        """One prediction, or a PictureError, per picture."""

    def embed(self, pictures: Sequence[bytes], stage: str | None = ..., on_error: Any = ...) -> Sequence[Any]:
        """One vector, or a PictureError, per picture."""


Loader = Callable[[Served, Serving], PredictorLike]


def load_predictor(served: Served, settings: Serving) -> PredictorLike:
    """The predictor of a bundle, on the replica's share of the machine."""
    import torch

    from tlray.bundle.predictor import Predictor

    torch.set_num_threads(max(1, math.floor(settings.cpus_per_replica)))

    predictor = Predictor(served.uri, "cuda" if settings.gpus_per_replica else "cpu")
    limit = int(settings.max_megapixels * 1_000_000)
    # Only ever stricter or looser about which pictures are taken: the pixels stay those of validation.
    predictor.preprocess = predictor.preprocess.model_copy(update={"max_pixels": limit})
    return predictor


class Wanted(NamedTuple):
    """What is asked of a picture: its prediction, or its embedding (at a stage)."""

    embedding: bool = False
    stage: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one picture, and the batch it ran in; times in seconds, of time.perf_counter."""

    result: Any  # prediction or embedding; None with an error
    error: PictureError | str | None  # str: the predictor itself failed
    began: float
    batch_s: float
    model_s: float | None  # of batch_s, where the predictor says


class ServedModel:
    """Ready once built: the predictor is loaded and has run batches of 1 and of the largest size.

    Its verbs answer what the client can mend, and what passes, with a Refusal as value: raised, it would
    be a failure in Serve's eyes and log. Raises BundleError where the bundle cannot be used or the warm-up
    fails.
    """

    def __init__(self, served: Served, settings: Serving, load: Loader = load_predictor) -> None:
        self.served, self.settings = served, settings
        # One thread: batches run one after the other, and torch's threads are set per thread that calls it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._predictor = self._thread.submit(load, served, settings).result()
        self._gallery = self._open_gallery()
        self._thread.submit(self._warm_up).result()

    def _open_gallery(self) -> gallery.Gallery | None:
        if not self._predictor.task.gallery:
            return None
        weights = self._predictor.manifest.checksums[WEIGHTS]
        return gallery.Gallery(self.settings.gallery, self.served.name, weights)

    def reconfigure(self, batching: dict[str, Any]) -> None:
        """Serve's hook for settings that change while running: max_batch_size, batch_wait_s."""
        batched: Any = self._one
        batched.set_max_batch_size(batching["max_batch_size"])
        batched.set_batch_wait_timeout_s(batching["batch_wait_s"])

    async def card(self) -> dict[str, Any]:
        """`ModelCard`, as plain values."""
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
        """Encoded pictures of one request -> predictions: ranked lists cut to ``top`` entries, finds to those
        from ``min_score`` on (None: the task's threshold)."""
        task = self._predictor.task
        if min_score is not None and not task.detects:
            return self._no_finds(min_score)
        reply = await self._ask(pictures, Wanted())
        served = (task.served(prediction, min_score) for prediction in reply["results"])
        return {**reply, "results": [_cut(prediction, top) for prediction in served]}

    async def embed(self, pictures: list[bytes], stage: str | None) -> Reply | Refusal:
        """Encoded pictures -> embeddings, lists of numbers."""
        stages = self._predictor.stages
        if stage is not None and stage not in stages:
            return Refusal(400, "unknown_stage", f"stage {stage[:40]!r}: {nearest(stage, stages)}")
        reply = await self._ask(pictures, Wanted(True, stage))
        return {**reply, "results": [x_D.tolist() for x_D in reply["results"]]}

    async def draw(self, pictures: list[bytes], min_score: float | None) -> Reply | Refusal:
        """One encoded picture -> PNG of its prediction over it, in source size; finds as in `predict`."""
        task, limit = self._predictor.task, self._predictor.preprocess.max_pixels
        if min_score is not None and not task.detects:
            return self._no_finds(min_score)

        def draw(predictions: list[Any]) -> bytes:
            record = task.record(None, task.served(predictions[0], min_score))
            out = io.BytesIO()
            task.draw(image.decode(pictures[0], limit), record, self._predictor.labels).save(out, "PNG")
            return out.getvalue()

        return await self._then(await self._ask(pictures, Wanted()), draw)

    async def as_png(self, pictures: list[bytes]) -> Reply | Refusal:
        """One encoded picture -> PNG that is the prediction itself, where the task has that."""
        task = self._predictor.manifest.task["name"]

        def image_of(predictions: list[Any]) -> bytes:
            found: bytes | None = self._predictor.task.image_of(predictions[0])
            if found is None:
                said = f"Accept: image/png: a prediction of {task} is no picture; accepted: application/json"
                raise Refusal(406, "not_acceptable", said)
            return found

        return await self._then(await self._ask(pictures, Wanted()), image_of)

    async def enroll(self, pictures: list[bytes], person: str) -> Reply | Refusal:
        """Add pictures of a person to the gallery, none if one of them is bad; how many it now has."""
        known = self._gallery
        if known is None:
            return self._no_gallery()

        def enrol(embeddings: list[Any]) -> int:
            for picture, x_D in zip(pictures, embeddings, strict=True):
                known.enrol(person, picture, x_D)
            return known.count(person)

        return await self._then(await self._ask(pictures, Wanted(True)), enrol)

    async def identify(self, pictures: list[bytes], top: int) -> Reply | Refusal:
        """Encoded pictures -> the people of the gallery most similar to each, and who it is."""
        known = self._gallery
        if known is None:
            return self._no_gallery()

        def search(embeddings: list[Any]) -> dict[str, Any]:
            found = []
            for ranked in known.search(embeddings, top):
                accepted = self._same(ranked[0].similarity if ranked else -math.inf)
                found.append(
                    {
                        "person": ranked[0].person if accepted else None,
                        "accepted": accepted,
                        "similar": [match._asdict() for match in ranked],
                    }
                )
            return {"identities": found, "threshold": self._threshold}

        return await self._then(await self._ask(pictures, Wanted(True)), search)

    async def verify(self, pictures: list[bytes], person: str | None) -> Reply | Refusal:
        """Two pictures, or one and a person -> similarity, and whether they are the same."""
        known = self._gallery
        if known is None:
            return self._no_gallery()

        def compare(embeddings: list[Any]) -> dict[str, Any]:
            if person is None:
                similarity: float | None = gallery.cosine(*embeddings)
            else:
                similarity = known.best(embeddings[0], person)
            if similarity is None:
                raise _nobody(person)
            return {
                "similarity": similarity,
                "same": self._same(similarity),
                "threshold": self._threshold,
            }

        return await self._then(await self._ask(pictures, Wanted(True)), compare)

    async def people(self) -> Reply | Refusal:
        """The gallery: pictures by person."""
        known = self._gallery
        return self._no_gallery() if known is None else await self._then(_NONE, lambda _: known.people())

    async def remove(self, person: str) -> Reply | Refusal:
        """Forget a person; the number of pictures that were enrolled."""
        known = self._gallery
        if known is None:
            return self._no_gallery()

        def remove(_: Any) -> int:
            number = known.remove(person)
            if not number:
                raise _nobody(person)
            return number

        return await self._then(_NONE, remove)

    @property
    def _threshold(self) -> float | None:
        found: float | None = self._predictor.manifest.task.get("threshold")
        return found

    def _same(self, similarity: float) -> bool | None:
        return None if self._threshold is None else similarity >= self._threshold

    def _no_finds(self, min_score: float) -> Refusal:
        task = self._predictor.manifest.task["name"]
        said = f"query min_score = {min_score:g}: accepted: none, a prediction of {task} is no list of finds"
        return Refusal(400, BAD, said)

    def _no_gallery(self) -> Refusal:
        from tlray import tasks

        with_one = ", ".join(name for name in tasks.names() if tasks.load({"name": name}).gallery)
        task = self._predictor.manifest.task["name"]
        said = f"model {self.served.key!r}: its task, {task}, has no gallery; tasks with one: {with_one}"
        return Refusal(404, "no_gallery", said)

    async def _ask(self, pictures: list[bytes], wanted: Wanted) -> Reply:
        """Each picture on its way through the batches; what came of all of them."""
        outcomes = await asyncio.gather(*(self._one((wanted, picture)) for picture in pictures))
        batches = {o.began: o for o in outcomes}.values()  # one thread: no two begin at once
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
        """The reply with what ``work`` makes of its results, in a thread; as it is if a picture was bad."""
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
    async def _one(self, items: list[tuple[Wanted, bytes]]) -> list[Outcome]:
        """Many calls with one picture each become one call with a list of them; see @serve.batch."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)

    def _run(self, items: list[tuple[Wanted, bytes]]) -> list[Outcome]:
        """What was gathered, in the predictor's thread: a batch for each thing that is wanted."""
        found: dict[int, Outcome] = {}
        for wanted in dict.fromkeys(wanted for wanted, _ in items):
            at = [i for i, item in enumerate(items) if item[0] == wanted]
            found |= zip(at, self._run_batch(wanted, [items[i][1] for i in at]), strict=True)
        return [found[i] for i in range(len(items))]

    def _run_batch(self, wanted: Wanted, pictures: list[bytes]) -> list[Outcome]:
        """Never raises: what fails, fails alone."""
        began = time.perf_counter()
        results: list[Any]
        try:
            if wanted.embedding:
                results = list(self._predictor.embed(pictures, wanted.stage, on_error="return"))
            else:
                results = list(self._predictor.predict(pictures, on_error="return"))
        except Exception as error:
            # A fault of the predictor. Whichever picture it was about, its neighbours shall not suffer.
            if len(pictures) > 1:
                logger.warning("%s: a batch of %d failed, runs one by one", self.served.key, len(pictures))
                return [self._run_batch(wanted, [picture])[0] for picture in pictures]
            logger.exception("%s: the predictor failed", self.served.key)
            results = [f"{type(error).__name__}: {error}"]
        batch_s = time.perf_counter() - began
        model_s = getattr(self._predictor, "model_s", None)
        return [
            Outcome(
                result=None if isinstance(result, (PictureError, str)) else result,
                error=result if isinstance(result, (PictureError, str)) else None,
                began=began,
                batch_s=batch_s,
                model_s=model_s,
            )
            for result in results
        ]

    def _warm_up(self) -> None:
        """Run what the first requests would otherwise wait for: allocation, kernels' choice, compilation."""
        from PIL import Image

        out = io.BytesIO()
        Image.effect_mandelbrot(self._predictor.preprocess.size, (-2, -1.2, 0.8, 1.2), 32).save(out, "JPEG")
        for size in sorted({1, self.settings.max_batch_size}):
            for result in self._predictor.predict([out.getvalue()] * size):
                if isinstance(result, Exception):
                    raise BundleError(f"{self.served.uri}: warm-up with {size} pictures failed: {result}")


_NONE = Reply(results=[], bad=[], fault=None, render_s=None, model_s=0.0)  # of a request without pictures


def _nobody(person: str | None) -> Refusal:
    return Refusal(404, "unknown_person", f"person {(person or '')[:100]!r}: nobody of this name is enrolled")


def _cut(prediction: dict[str, Any], top: int) -> dict[str, Any]:
    """A prediction whose ranked list of labels, where it has one, ends after ``top`` entries."""
    ranked = prediction.get("labels")
    return {**prediction, "labels": ranked[:top]} if isinstance(ranked, list) else prediction
