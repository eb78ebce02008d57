"""The served models as the HTTP application sees them: found by name, called with a request's pictures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from fastapi import Request

from tlray.config import Serving
from tlray.errors import nearest
from tlray.serving import protocol
from tlray.serving.protocol import RETRY_AFTER_S, Limits, ModelCard, Refusal, Reply, Timing

_CARD_TIMEOUT_S = 2.0
_BUFFERED_BODIES = 16  # full-size bodies that one process holds at once; beyond that it is overloaded


class Endpoint(Protocol):
    """One served model."""

    name: str
    version: int | None
    key: str

    async def ask(self, verb: str, *args: Any) -> Reply:
        """Call the method ``verb`` of `model.ServedModel`.

        Raises Refusal, also where the model is overloaded or away.
        """

    async def card(self) -> ModelCard:
        """Describe the model. Raises Refusal as `ask` does."""


class Answered(NamedTuple):
    """What a model answered to a request with pictures, and how long that took."""

    model: Endpoint
    results: Any
    timing: Timing


class Endpoints:
    """All served models. A plain name means the first model of that name in the list."""

    def __init__(self, models: Sequence[Endpoint], settings: Serving) -> None:
        self.models, self._timeout_s = models, settings.timeout_s
        self._limits = Limits.of(settings)
        self._budget = BodyBudget(self._limits.max_body * _BUFFERED_BODIES)
        self._by_name: dict[str, Endpoint] = {}
        for model in models:
            self._by_name.setdefault(model.name, model)
            self._by_name[model.key] = model
        self._warm: set[str] = set()  # keys of the models that have answered once

    def find(self, name: str) -> Endpoint:
        """The model with a name, or name@version. Raises Refusal (404)."""
        if name not in self._by_name:
            hint = nearest(name, self._by_name)
            suggestion = f" {hint};" if hint.startswith("did") else ""
            served = ", ".join(sorted(self._by_name))
            raise Refusal(404, "unknown_model", f"model {name[:100]!r}:{suggestion} served: {served}")
        return self._by_name[name]

    async def card(self, model: Endpoint) -> ModelCard:
        """What a model says of itself. Raises Refusal (503) where it does not answer in time."""
        try:
            async with asyncio.timeout(_CARD_TIMEOUT_S):
                card = await model.card()
        except TimeoutError:
            raise Refusal(503, "not_ready", f"model {model.key!r} does not answer", RETRY_AFTER_S) from None
        self._warm.add(model.key)
        return card

    async def cards(self) -> list[ModelCard]:
        """The cards of all models."""
        return await asyncio.gather(*(self.card(model) for model in self.models))

    async def not_ready(self) -> list[str]:
        """Keys of the models that have not loaded their bundle and run their warm-up yet, or are gone."""
        cards = await asyncio.gather(*(self.card(model) for model in self.models), return_exceptions=True)
        keys = []
        for model, card in zip(self.models, cards, strict=True):
            # A warm model that is merely busy stays ready: taking it out of service would not help.
            busy = isinstance(card, Refusal) and card.reason in ("not_ready", "overloaded")
            if isinstance(card, BaseException) and not (busy and model.key in self._warm):
                keys.append(model.key)
        return keys

    async def ask(
        self, name: str, request: Request, verb: str, *args: Any, count: int | None = None
    ) -> Answered:
        """Read the pictures of a request and call ``verb`` of a model with them.

        ``count``: how many pictures the verb needs; None: any number. One bad picture refuses the whole
        request; the refusal names its position.
        """
        start = time.perf_counter()
        model = self.find(name)
        protocol.check_headers(dict(request.headers), self._limits)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        with self._budget.share() as share:
            try:
                async with asyncio.timeout_at(deadline):
                    body = await protocol.read_body(request.stream(), self._limits, share.grow)
            except TimeoutError:
                raise Refusal(408, "slow_body", f"body not there after {self._timeout_s:g} s") from None
            content_type = request.headers.get("content-type")
            # In a thread, because parsing a large body would block all other requests.
            pictures = await asyncio.to_thread(protocol.pictures, content_type, body, self._limits)
            if count not in (None, len(pictures)):
                raise Refusal(400, "wrong_number", f"{len(pictures)} pictures: accepted here: {count}")
            sent = time.perf_counter()
            reply = await self._call(model, deadline, verb, pictures, *args)
        if reply["bad"]:
            index, error = reply["bad"][0]
            raise Refusal.of_picture(error, index, len(pictures))
        if reply["fault"] is not None:
            raise Refusal.of_fault()
        return Answered(model, reply["results"], _timing(reply, start, sent, time.perf_counter()))

    async def ask_gallery(self, name: str, verb: str, *args: Any) -> Any:
        """Call a verb of a model that takes no pictures."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        return (await self._call(self.find(name), deadline, verb, *args))["results"]

    async def _call(self, model: Endpoint, deadline: float, verb: str, *args: Any) -> Reply:
        try:
            async with asyncio.timeout_at(deadline):
                return await model.ask(verb, *args)
        except TimeoutError:
            raise Refusal(504, "timeout", f"no answer after {self._timeout_s:g} s") from None


class BodyBudget:
    """Memory for request bodies, in bytes. A body that does not fit is refused, not queued."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0

    @contextlib.contextmanager
    def share(self) -> Iterator[BodyShare]:
        """The share of one request, given back at the end of the block."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            self.used -= share.num_bytes


class BodyShare:
    """What one request has taken of a `BodyBudget`."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget, self.num_bytes = budget, 0

    def grow(self, num_bytes: int) -> None:
        """Take more bytes. Raises Refusal (503) where the budget has not as many left."""
        if self._budget.used + num_bytes > self._budget.budget:
            raise Refusal(503, "overloaded", "too many bodies at once; come again", RETRY_AFTER_S)
        self._budget.used += num_bytes
        self.num_bytes += num_bytes


def _timing(reply: Reply, start: float, sent: float, end: float) -> Timing:
    render_s = reply["render_s"]
    return Timing(
        queue_ms=_ms(end - sent - reply["model_s"] - (render_s or 0.0)),
        render_ms=None if render_s is None else _ms(render_s),
        model_ms=_ms(reply["model_s"]),
        total_ms=_ms(end - start),
    )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
