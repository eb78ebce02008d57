"""Predictor: the one way from a bundle and encoded pictures to predictions and embeddings.

Evaluation, batch prediction and serving all go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from tlray.bundle import bundle
from tlray.data.image import Geometry, render
from tlray.errors import PictureError
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

    @property
    def stages(self) -> list[str]:
        """Names of the backbone's stages, input first, as `embed` takes them."""
        module: Any = self.model.module
        return list(module.backbone.stages)

    def predict(
        self, pictures: Sequence[bytes], on_error: Literal["raise", "return"] = "raise"
    ) -> list[Prediction | PictureError]:
        """Encoded pictures -> one prediction each, in order.

        A bad picture raises PictureError, or with ``on_error="return"`` stands in its own place
        in the list as one, its neighbours unharmed.
        """
        return self._each(pictures, on_error, self.predict_rendered)

    def predict_rendered(self, x_BCHW: torch.Tensor, geometries: Sequence[Geometry]) -> list[Prediction]:
        """Model input as `image.render` makes it -> predictions."""
        return self.model.predict_rendered(x_BCHW, geometries, self.device)

    def embed(
        self,
        pictures: Sequence[bytes],
        stage: str | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> list[np.ndarray | PictureError]:
        """Encoded pictures -> one vector each, (D,) float32; bad pictures as in `predict`."""
        return self._each(pictures, on_error, lambda x_BCHW, _: self.embed_rendered(x_BCHW, stage))

    @torch.inference_mode()
    def embed_rendered(self, x_BCHW: torch.Tensor, stage: str | None = None) -> np.ndarray:
        """Model input -> (B, D) float32: the model's embedding where its task trains one, else the pooled
        final features; of a named stage of the backbone the mean over the places of its map.

        Raises ConfigError for an unknown stage.
        """
        module: Any = self.model.module
        x_BCHW = x_BCHW.to(self.device, non_blocking=True)
        if stage is not None:
            x_BD = module.backbone.pyramid(x_BCHW, [stage])[0].mean(dim=(2, 3))
        elif hasattr(module, "embed"):
            x_BD = module.embed(x_BCHW)
        else:
            x_BD = module.backbone.pooled(x_BCHW)
        found: np.ndarray = x_BD.float().cpu().numpy()
        return found

    def _each(
        self,
        pictures: Sequence[bytes],
        on_error: Literal["raise", "return"],
        run: Callable[[torch.Tensor, Sequence[Geometry]], Iterable[Any]],
    ) -> list[Any]:
        """What ``run`` gives for the pictures that can be rendered, at their places."""
        results: list[Any] = []
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
        found = iter(run(torch.from_numpy(np.stack(inputs)), geometries) if inputs else [])
        return [next(found) if result is None else result for result in results]
