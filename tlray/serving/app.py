"""The HTTP application, and the light deployment that runs it. Never imports torch.

Routes are in routes.py. Ray Serve limits neither the size of bodies nor slow clients; endpoints.py does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray.exceptions
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tlray.config import Serving
from tlray.serving import parameters
from tlray.serving.endpoints import Endpoint, Endpoints
from tlray.serving.protocol import RETRY_AFTER_S, ModelCard, Refusal, Reply
from tlray.serving.routes import router

logger = logging.getLogger(__name__)


def create_app(models: Sequence[Endpoint], settings: Serving) -> FastAPI:
    """The application over some models. A plain name means the first model of that name in the list."""
    app = FastAPI(
        title="tlray",
        version="1",
        description="Predictions for pictures. Every error is JSON: {error: {status, reason, detail}}.",
        docs_url=None,  # FastAPI's pages load their scripts from a public server; page.py has ours
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(parameters.check)],
    )
    app.state.endpoints = Endpoints(models, settings)
    app.include_router(router)
    _errors_as_json(app)
    return app


def _errors_as_json(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(parameters.refusal(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        reason = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        detail = f"{request.method} {request.scope['path'][:100]}: {error.detail}; see /docs"
        answer = _error(Refusal(error.status_code, reason, detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return _error(Refusal(400, "disconnected", "the client went away"))  # nobody reads it

    app.add_middleware(_Faults)


class _Faults:
    """Outermost middleware: an unexpected exception is logged and answered as JSON with status 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False  # sending an answer: from then on no other can be sent

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            if scope["type"] != "http" or has_begun:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await _error(Refusal.of_fault())(scope, receive, send)


def _error(refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    error = {"status": refusal.status, "reason": refusal.reason, "detail": refusal.detail}
    return JSONResponse({"error": error}, refusal.status, headers)


class Remote:
    """An `Endpoint` in another process, behind a Serve handle. Ray's exceptions become refusals here."""

    def __init__(self, name: str, version: int | None, key: str, handle: Any) -> None:
        self.name, self.version, self.key, self._handle = name, version, key, handle

    async def ask(self, verb: str, *args: Any) -> Reply:
        reply: Reply | Refusal = await self._call(verb, *args)
        if isinstance(reply, Refusal):
            raise reply
        return reply

    async def card(self) -> ModelCard:
        return ModelCard.model_validate(await self._call("card"))

    async def _call(self, method: str, *args: Any) -> Any:
        for last in (False, True):
            response = getattr(self._handle, method).remote(*args)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # else the replica would finish work that nobody waits for
                raise
            except BackPressureError:
                raise Refusal(503, "overloaded", f"model {self.key!r}: queue full", RETRY_AFTER_S) from None
            except (ray.exceptions.RayActorError, DeploymentUnavailableError) as error:
                # A replica died during the request: try another one once. That is safe: most verbs change
                # nothing, and a picture enrolled twice is one enrolment. A removal that the dead replica had
                # already done is answered as "nobody of this name".
                if last:
                    logger.warning("%s: %s", self.key, error)
                    raise Refusal(503, "unavailable", f"model {self.key!r} is away", RETRY_AFTER_S) from None
        raise AssertionError("unreachable")


def ingress(models: Sequence[tuple[str, int | None, str, str]], settings: Serving) -> type:
    """The deployment class of the application. ``models``: name, version, key and deployment name of each."""

    def build() -> FastAPI:  # runs in the replica, because a handle belongs to its process
        return create_app(
            [
                Remote(name, version, key, serve.get_deployment_handle(deployment))
                for name, version, key, deployment in models
            ],
            settings,
        )

    deployment_class: type = serve.ingress(build)()
    return deployment_class
