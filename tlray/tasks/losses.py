"""Losses of mixed pictures; of segmentation those that look at whole regions: soft Dice, and Lovász-softmax.

Each gives one number a row (B,), so that means over rows add up for batches and workers of any size;
libraries have them over whole batches only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tlray.data.mixing import PARTNER, SHARE


def mixed(loss: Callable[[Mapping[str, Tensor]], Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """``loss`` (B, ...) of a batch's targets; where its pictures are mixed, that of a row and that of its
    partner by their shares of the picture."""
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
    """``loss`` of the classes that a row shows: probabilities (K, P) and where the class is (K, P)."""
    found = []
    for logits_CHW, truth_HW in zip(logits_BCHW.float(), truth_BHW, strict=True):
        known_HW = truth_HW != ignore
        truth_P = truth_HW[known_HW].long()
        if not len(truth_P):
            found.append(logits_CHW.sum() * 0)
            continue
        chance_CP = logits_CHW[:, known_HW].softmax(0)
        there = truth_P.unique()
        is_KP = (truth_P[None] == there[:, None]).float()
        found.append(loss(chance_CP[there], is_KP).mean())
    return torch.stack(found)


def _dice(chance_KP: Tensor, is_KP: Tensor) -> Tensor:
    return 1 - 2 * (chance_KP * is_KP).sum(1) / (chance_KP.sum(1) + is_KP.sum(1))


def _lovasz(chance_KP: Tensor, is_KP: Tensor) -> Tensor:
    error_KP = (is_KP - chance_KP).abs()
    order_KP = _falling(error_KP.detach())
    sorted_KP = is_KP.gather(1, order_KP)
    total_K1 = sorted_KP.sum(1, keepdim=True)
    shared_KP = total_K1 - sorted_KP.cumsum(1)
    joined_KP = total_K1 + (1 - sorted_KP).cumsum(1)
    jaccard_KP = 1 - shared_KP / joined_KP
    # How much each further error costs in IoU.
    weight_KP = torch.diff(jaccard_KP, dim=1, prepend=torch.zeros_like(total_K1))
    return (error_KP.gather(1, order_KP) * weight_KP).sum(1)


def _falling(error_KP: Tensor) -> Tensor:
    """The order of each row's errors from the largest down."""
    if error_KP.device.type == "cpu":  # NumPy sorts with vector instructions, six times as fast
        return torch.from_numpy(np.argsort(-error_KP.numpy(), axis=1))
    return error_KP.argsort(1, descending=True)
