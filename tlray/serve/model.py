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
from typing import Any, Protocol

from ray import serve

from tlray.config import Serving
from tlray.errors import BundleError, PictureError
from tlray.serve.protocol import ModelCard, Reply, Size

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
    """What serving needs of `tlray.predict.Predictor`.

    ``render_s`` and ``model_s``, where there, say how long the last call took for either part.
    """

    manifest: Any
    preprocess: Any
    labels: Any

    def predict(self, pictures: Sequence[bytes], on_error: Any = ...) -> Sequence[Any]:
        """One prediction, or a PictureError, per picture."""


Loader = Callable[[Served, Serving], PredictorLike]


def load_predictor(served: Served, settings: Serving) -> PredictorLike:
    """The predictor of a bundle, on the replica's share of the machine."""
    import torch

    from tlray.predict import Predictor

    torch.set_num_threads(max(1, math.floor(settings.cpus_per_replica)))

    class Timed(Predictor):
        """Says how much of its last call was the model, the rest being bytes to pixels."""

        model_s = 0.0

        def predict_rendered(self, *args: Any) -> Any:
            start = time.perf_counter()
            out = super().predict_rendered(*args)  # decoded to plain values, so a GPU has finished
            self.model_s = time.perf_counter() - start
            return out

        def predict(self, *args: Any, **kwargs: Any) -> Any:
            self.model_s = 0.0
            return super().predict(*args, **kwargs)

    predictor = Timed(served.uri, "cuda" if settings.gpus_per_replica else "cpu")
    limit = int(settings.max_megapixels * 1_000_000)
    # Only ever stricter or looser about which pictures are taken: the pixels stay those of validation.
    predictor.preprocess = predictor.preprocess.model_copy(update={"max_pixels": limit})
    return predictor


@dataclass(frozen=True)
class Outcome:
    """What became of one picture, and the batch it ran in; times in seconds, of time.perf_counter."""

    prediction: dict[str, Any] | None
    error: PictureError | str | None  # str: the predictor itself failed
    began: float
    batch_s: float
    model_s: float | None  # of batch_s, where the predictor says


class Model:
    """Ready once built: the predictor is loaded and has run batches of 1 and of the largest size.

    Raises BundleError where the bundle cannot be used or the warm-up fails.
    """

    def __init__(self, served: Served, settings: Serving, load: Loader = load_predictor) -> None:
        self.served, self.settings = served, settings
        # One thread: batches run one after the other, and torch's threads are set per thread that calls it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._predictor = self._thread.submit(load, served, settings).result()
        self._thread.submit(self._warm_up).result()

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

    async def predict(self, pictures: list[bytes], top: int) -> Reply:
        """Encoded pictures of one request -> predictions, ranked lists cut to ``top`` entries."""
        outcomes = await asyncio.gather(*(self._one(picture) for picture in pictures))
        batches = {o.began: o for o in outcomes}.values()  # one thread: no two begin at once
        model_s = [o.model_s for o in batches if o.model_s is not None]
        whole_s = sum(o.batch_s for o in batches)
        timed = len(model_s) == len(batches)
        return Reply(
            predictions=[_cut(o.prediction, top) for o in outcomes if o.prediction is not None],
            bad=[(i, o.error) for i, o in enumerate(outcomes) if isinstance(o.error, PictureError)],
            fault=next((o.error for o in outcomes if isinstance(o.error, str)), None),
            render_s=whole_s - sum(model_s) if timed else None,
            model_s=sum(model_s) if timed else whole_s,
        )

    @serve.batch
    async def _one(self, pictures: list[bytes]) -> list[Outcome]:
        """Many calls with one picture each become one call with a list of them; see @serve.batch."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, pictures)

    def _run(self, pictures: list[bytes]) -> list[Outcome]:
        """A whole batch, in the predictor's thread. Never raises: what fails, fails alone."""
        began = time.perf_counter()
        results: list[Any]
        try:
            results = list(self._predictor.predict(pictures, on_error="return"))
        except Exception as error:
            # A fault of the predictor. Whichever picture it was about, its neighbours shall not suffer.
            if len(pictures) > 1:
                logger.warning("%s: a batch of %d failed, runs one by one", self.served.key, len(pictures))
                return [self._run([picture])[0] for picture in pictures]
            logger.exception("%s: the predictor failed", self.served.key)
            results = [f"{type(error).__name__}: {error}"]
        batch_s = time.perf_counter() - began
        model_s = getattr(self._predictor, "model_s", None)
        return [
            Outcome(
                prediction=None if isinstance(result, (PictureError, str)) else result,
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


def _cut(prediction: dict[str, Any], top: int) -> dict[str, Any]:
    """A prediction whose ranked list of labels, where it has one, ends after ``top`` entries."""
    ranked = prediction.get("labels")
    return {**prediction, "labels": ranked[:top]} if isinstance(ranked, list) else prediction
