"""Writers of layouts, one function each; `LAYOUTS` names them all."""

from __future__ import annotations

from tests.roundtrip.layout import Layout
from tests.roundtrip.writers import boxes, labels, masks, yolo

LAYOUTS: list[Layout] = [*labels.LAYOUTS, *boxes.LAYOUTS, *yolo.LAYOUTS, *masks.LAYOUTS]
