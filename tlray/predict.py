"""Predictor: the one way from a bundle and encoded pictures to predictions.

Evaluation, batch prediction and serving all go through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from tlray import bundle
from tlray.errors import PictureError
from tlray.image import Geometry, render
from tlray.tasks.base import Prediction


class Predictor:
    """A verified bundle, ready on a device. Raises BundleError where the bundle is not sound.

    ``device``: a torch device, or "auto" for CUDA where there is one.
    """

    def __init__(self, uri: str, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.uri, self.device = uri, device
        self.manifest, self.model = bundle.load(uri, device)
        self.task, self.preprocess, self.labels = self.model.task, self.model.preprocess, self.model.labels

    def predict(
        self, pictures: Sequence[bytes], on_error: Literal["raise", "return"] = "raise"
    ) -> list[Prediction | PictureError]:
        """Encoded pictures -> one prediction each, in order.

        A bad picture raises PictureError, or with ``on_error="return"`` stands in its own place
        in the list as one, its neighbours unharmed.
        """
        results: list[Prediction | PictureError | None] = []
        inputs, geometries = [], []
        for data in pictures:
            try:
                x_CHW, geometry = render(data, self.preprocess)
            except PictureError as error:
                if on_error == "raise":
                    raise
                results.append(error)
                continue
            inputs.append(x_CHW)
            geometries.append(geometry)
            results.append(None)
        found = iter(self.predict_rendered(torch.from_numpy(np.stack(inputs)), geometries) if inputs else [])
        return [next(found) if result is None else result for result in results]

    def predict_rendered(self, x_BCHW: torch.Tensor, geometries: Sequence[Geometry]) -> list[Prediction]:
        """Model input as `image.render` makes it -> predictions."""
        return self.model.predict_rendered(x_BCHW, geometries, self.device)
