"""Dice and Lovász losses against their papers' definitions, row by row."""

from __future__ import annotations

import pytest
import torch

from tlray.tasks.losses import dice, lovasz

IGNORE = 255


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    truth = torch.randint(0, 4, (3, 5, 6))
    truth[0, 0, :3] = IGNORE
    return torch.randn(3, 4, 5, 6, requires_grad=True), truth


def iou_of_set(wrong: set[int], truth: list[bool]) -> float:
    """1 - IoU of a class if exactly these pixels are wrong."""
    inside = {i for i, there in enumerate(truth) if there}
    union = inside | wrong
    return len(wrong) / len(union) if union else 0.0


def by_definition(chance: list[float], truth: list[bool]) -> float:
    """The Lovász extension (equation 8 of the paper): sorted errors, each times the increase in loss."""
    errors = [abs(float(t) - p) for p, t in zip(chance, truth, strict=True)]
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, before = 0.0, 0.0
    for count in range(1, len(order) + 1):
        now = iou_of_set(set(order[:count]), truth)
        total += errors[order[count - 1]] * (now - before)
        before = now
    return total


def test_lovasz_is_the_papers() -> None:
    logits, truth = sample()
    loss_B = lovasz(logits, truth, IGNORE)
    for row in range(3):
        known = truth[row] != IGNORE
        ids, chance = truth[row][known], logits[row][:, known].softmax(0).detach()
        losses = [by_definition(chance[c].tolist(), (ids == c).tolist()) for c in ids.unique().tolist()]
        assert float(loss_B[row].detach()) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_dice_is_the_papers() -> None:
    logits, truth = sample(1)
    known = truth[1] != IGNORE
    ids, chance = truth[1][known], logits[1][:, known].softmax(0).detach()
    losses = []
    for c in ids.unique():
        p, t = chance[c], (ids == c).float()
        losses.append(float(1 - 2 * (p * t).sum() / (p.sum() + t.sum())))
    loss = dice(logits, truth, IGNORE)[1].detach()
    assert float(loss) == pytest.approx(sum(losses) / len(losses), abs=1e-6)


@pytest.mark.parametrize("loss", [dice, lovasz])
def test_rows_count_one_by_one_and_unknown_ones_nothing(loss) -> None:
    logits, truth = sample(2)
    truth[2] = IGNORE
    together = loss(logits, truth, IGNORE)
    alone = torch.cat([loss(logits[i : i + 1], truth[i : i + 1], IGNORE) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert float(together[2].detach()) == 0.0
    together.mean().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all()) and not logits.grad[2].any()
    assert not logits.grad[0, :, 0, :3].any() and logits.grad[0, :, 1:].any()


@pytest.mark.parametrize("loss", [dice, lovasz])
def test_a_perfect_answer_has_none_and_a_wrong_one_all(loss) -> None:
    _, truth = sample(3)
    right = torch.nn.functional.one_hot(truth.where(truth != IGNORE, torch.tensor(0)), 4).permute(0, 3, 1, 2)
    assert float(loss(right * 50.0, truth, IGNORE).max()) < 1e-4
    assert float(loss(right.roll(1, 1) * 50.0, truth, IGNORE).min()) > 0.9
