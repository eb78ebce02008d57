"""A predictor without a model: its pictures are words that say what shall happen to them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from tlray.config import Serving
from tlray.errors import PictureError
from tlray.serving.model import Served

JPEG = b"\xff\xd8\xff"


class FakePredictor:
    def __init__(self) -> None:
        self.manifest = SimpleNamespace(task={"name": "fake"}, metrics={"accuracy": 0.5})
        self.preprocess = SimpleNamespace(size=(32, 24))
        self.labels = ["a", "b", "c"]
        self.task = SimpleNamespace(
            gallery=False, detects=False, image_of=lambda _: None, served=lambda prediction, _: prediction
        )
        self.stages = ["stem", "layer1"]
        self.sizes: list[int] = []  # of the batches so far

    def predict(self, pictures: Sequence[bytes], on_error: str = "raise") -> list[Any]:
        self.sizes.append(len(pictures))
        if b"boom" in pictures:
            raise RuntimeError("boom")
        if b"die" in pictures:
            os._exit(1)
        time.sleep(max(float(p[6:]) if p.startswith(b"sleep ") else 0.0 for p in pictures))
        return [self.one(picture, len(pictures)) for picture in pictures]

    def one(self, picture: bytes, size: int) -> Any:
        word = picture[:20].decode("latin-1")
        if word in PictureError.STATUS:
            return PictureError(word, f"it is {word}")
        if not picture.startswith((b"ok", b"sleep", JPEG)):
            return PictureError("not_a_picture", "no picture")
        ranked = [{"label": name, "index": i, "probability": 1 / 3} for i, name in enumerate(self.labels)]
        return {
            "labels": ranked,
            "label": "a",
            "said": word if picture[:3] != JPEG else "jpeg",
            "batch": size,
            "warm_up": self.sizes[:2],
        }


def load(served: Served, settings: Serving) -> FakePredictor:
    return FakePredictor()


def load_broken(served: Served, settings: Serving) -> FakePredictor:
    from tlray.errors import BundleError

    raise BundleError(f"{served.uri}: weights.safetensors: checksum differs")
