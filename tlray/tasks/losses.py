"""The loss of mixed pictures, and two losses of segmentation over whole regions: soft Dice, Lovász-softmax.

Each returns one number for each row (B,): means over rows add up for batches and workers of any size.
Libraries have Dice and Lovász over whole batches only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tlray.data.mixing import PARTNER, SHARE


def mixed(loss: Callable[[Mapping[str, Tensor]], Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """``loss`` (B, ...) of a batch's targets. For mixed pictures it is the mean of the losses for both
    pictures' targets, weighted by their shares."""
    own = loss(targets)
    if SHARE not in targets:
        return own
    other = loss({name.removeprefix(PARTNER): x for name, x in targets.items() if name.startswith(PARTNER)})
    share = targets[SHARE].reshape(-1, *[1] * (own.ndim - 1))
    return share * own + (1 - share) * other


def dice(logits_BCHW: Tensor, truth_BHW: Tensor, ignore: int) -> Tensor:
    """1 - Dice coefficient of the probabilities, mean over a row's classes (arXiv 1606.04797).

    A row without a known pixel has 0.
    """
    return _by_row(logits_BCHW, truth_BHW, ignore, _dice)


def lovasz(logits_BCHW: Tensor, truth_BHW: Tensor, ignore: int) -> Tensor:
    """A convex surrogate of 1 - IoU, mean over a row's classes (Berman et al., arXiv 1705.08790).

    A row without a known pixel has 0.
    """
    return _by_row(logits_BCHW, truth_BHW, ignore, _lovasz)


def _by_row(
    logits_BCHW: Tensor, truth_BHW: Tensor, ignore: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Mean of ``loss`` over the K classes that a row shows; its arguments are the probabilities and the truth
    of each class at P known pixels, (K, P)."""
    loss_B = []
    for logits_CHW, truth_HW in zip(logits_BCHW.float(), truth_BHW, strict=True):
        known_HW = truth_HW != ignore
        truth_P = truth_HW[known_HW].long()
        if not len(truth_P):
            loss_B.append(logits_CHW.sum() * 0)  # 0, but connected to the graph
            continue
        chance_CP = logits_CHW[:, known_HW].softmax(0)
        classes_K = truth_P.unique()
        is_KP = (truth_P[None] == classes_K[:, None]).float()
        loss_B.append(loss(chance_CP[classes_K], is_KP).mean())
    return torch.stack(loss_B)


def _dice(chance_KP: Tensor, is_KP: Tensor) -> Tensor:
    return 1 - 2 * (chance_KP * is_KP).sum(1) / (chance_KP.sum(1) + is_KP.sum(1))


def _lovasz(chance_KP: Tensor, is_KP: Tensor) -> Tensor:
    error_KP = (is_KP - chance_KP).abs()
    order_KP = _descending_order(error_KP.detach())
    sorted_KP = is_KP.gather(1, order_KP)
    total_K1 = sorted_KP.sum(1, keepdim=True)
    intersection_KP = total_K1 - sorted_KP.cumsum(1)
    union_KP = total_K1 + (1 - sorted_KP).cumsum(1)
    jaccard_KP = 1 - intersection_KP / union_KP
    # The IoU that each further error costs.
    weight_KP = torch.diff(jaccard_KP, dim=1, prepend=torch.zeros_like(total_K1))
    return (error_KP.gather(1, order_KP) * weight_KP).sum(1)


def _descending_order(error_KP: Tensor) -> Tensor:
    """Indices that sort each row, largest first."""
    if error_KP.device.type == "cpu":  # NumPy sorts with vector instructions, six times as fast
        return torch.from_numpy(np.argsort(-error_KP.numpy(), axis=1))
    return error_KP.argsort(1, descending=True)
