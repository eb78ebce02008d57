"""The HTTP application: routes, guards and errors, and the light deployment that runs it.

Never imports torch. Everything that a client can do wrong ends in a `Refusal`, written as JSON; Ray Serve
itself has no limit on bodies or on slow clients, so those guards are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol

import ray.exceptions
from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tlray.config import Serving
from tlray.errors import DataError, nearest
from tlray.serving import page, protocol, query
from tlray.serving.gallery import MAX_NAME, check_name
from tlray.serving.protocol import (
    RETRY_AFTER_S,
    Answer,
    Embeddings,
    Enrolled,
    Identities,
    Limits,
    ModelCard,
    People,
    Refusal,
    Removed,
    Reply,
    Timing,
    Verified,
)

logger = logging.getLogger(__name__)

_CARD_TIMEOUT_S = 2.0
_BUFFERED_BODIES = 16  # full-size bodies that one process holds at once; beyond that it is overloaded
PNG = "image/png"
_PICTURE = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {**_PICTURE, "description": "the bytes of one picture"}},
        "application/octet-stream": {"schema": {**_PICTURE, "description": "the bytes of one picture"}},
        protocol.MULTIPART: {
            "schema": {
                "type": "object",
                "description": "one file part per picture, under any name",
                "properties": {"file": {"type": "array", "items": _PICTURE}},
            }
        },
    },
}
_NO_PNG = "Accept: image/png, and the task's predictions are no pictures"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {
        "description": "empty or truncated picture, too few or many, damaged multipart body, bad parameter"
    },
    404: {"description": "no such model; of people: a task without a gallery, nobody of that name"},
    408: {"description": "the body did not arrive in time"},
    413: {"description": "body too large, too many pixels, too many pictures"},
    415: {"description": "not a picture, or an unsupported Content-Type"},
    503: {"description": "overloaded or not ready; Retry-After says when to come again"},
    504: {"description": "no prediction in time"},
    "default": {"description": "any other error"},  # also keeps FastAPI from promising a 422
}


Person = Annotated[
    str, Query(description=f"1 to {MAX_NAME} characters that can be seen, and no slash; more than dots")
]
MinScore = Annotated[
    float | None,
    Query(ge=0, le=1, allow_inf_nan=False, description="of objects; none: the model's threshold"),
]


class _Png(Response):
    media_type = PNG


class Endpoint(Protocol):
    """A served model as the application sees it."""

    name: str
    version: int | None
    key: str

    async def ask(self, verb: str, *args: Any) -> Reply:
        """What the method ``verb`` of `model.Model` answers; raises Refusal, also where the model is
        overloaded or away."""

    async def card(self) -> ModelCard:
        """What the model is; raises Refusal as `ask` does."""


class Gate:
    """Holds a budget of request bodies in memory; what does not fit is refused, not queued."""

    def __init__(self, budget: int) -> None:
        self.budget, self.held = budget, 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[Hold]:
        """A share of the budget for one request, given back at its end."""
        share = Hold(self)
        try:
            yield share
        finally:
            self.held -= share.num_bytes


class Hold:
    """One request's share of a `Gate`."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.num_bytes = gate, 0

    def grow(self, num_bytes: int) -> None:
        """Take more; 503 where the budget has no more."""
        if self.gate.held + num_bytes > self.gate.budget:
            raise Refusal(503, "overloaded", "too many bodies at once; come again", RETRY_AFTER_S)
        self.gate.held += num_bytes
        self.num_bytes += num_bytes


def create_app(models: Sequence[Endpoint], settings: Serving) -> FastAPI:
    """The application over some models. A plain name means the first model of that name in the list."""
    app = FastAPI(
        title="tlray",
        version="1",
        description="Predictions for pictures. Every error is JSON: {error: {status, reason, detail}}.",
        docs_url=None,  # the usual pages load their scripts from a public server; ours is below
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(query.known)],
    )
    limits = Limits.of(settings)
    gate = Gate(limits.max_body * _BUFFERED_BODIES)
    routes: dict[str, Endpoint] = {}
    for model in models:
        routes.setdefault(model.name, model)
        routes[model.key] = model
    warm: set[str] = set()  # keys of models that have answered once
    answers = {status: {**said, "model": protocol.ErrorAnswer} for status, said in _REFUSALS.items()}
    without_pictures = {s: answers[s] for s in (404, 503, "default")}

    def find(name: str) -> Endpoint:
        if name not in routes:
            hint = nearest(name, routes)
            meant = f" {hint};" if hint.startswith("did") else ""
            served = ", ".join(sorted(routes))
            raise Refusal(404, "unknown_model", f"model {name[:100]!r}:{meant} served: {served}")
        return routes[name]

    async def card(model: Endpoint) -> ModelCard:
        try:
            async with asyncio.timeout(_CARD_TIMEOUT_S):
                found = await model.card()
        except TimeoutError:
            raise Refusal(503, "not_ready", f"model {model.key!r} does not answer", RETRY_AFTER_S) from None
        warm.add(model.key)
        return found

    @app.get("/livez", response_model=protocol.Health, summary="This process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/readyz",
        response_model=protocol.Health,
        responses={503: answers[503]},
        summary="Every model is warmed up",
    )
    async def readyz() -> dict[str, str]:
        """200 once every model has loaded its bundle and run its warm-up."""
        found = await asyncio.gather(*(card(model) for model in models), return_exceptions=True)
        missing = []
        for model, result in zip(models, found, strict=True):
            # A warm model that is merely busy stays ready: taking it out of service would not help.
            busy = isinstance(result, Refusal) and result.reason in ("not_ready", "overloaded")
            if isinstance(result, BaseException) and not (busy and model.key in warm):
                missing.append(model.key)
        if missing:
            raise Refusal(503, "not_ready", f"not warmed up yet: {', '.join(missing)}", RETRY_AFTER_S)
        return {"status": "ready"}

    @app.get("/v1/models", response_model=protocol.ModelList, responses={503: answers[503]})
    async def list_models() -> dict[str, Any]:
        """The served models: name, version, task, labels, metrics of their validation, input size."""
        return {"models": await asyncio.gather(*(card(model) for model in models))}

    @app.get(
        "/v1/models/{name}",
        response_model=ModelCard,
        responses=without_pictures,
    )
    async def one_model(name: str) -> ModelCard:
        """One served model, by its name or as name@version."""
        return await card(find(name))

    async def ask(
        name: str, request: Request, verb: str, *args: Any, count: int | None = None
    ) -> tuple[Endpoint, Any, Timing]:
        """Read the pictures of a request and have the model do ``verb`` with them; ``count``: just so many.

        One bad picture refuses the whole request and is named by its position.
        """
        start = time.perf_counter()
        model = find(name)
        protocol.check_headers(dict(request.headers), limits)
        deadline = asyncio.get_running_loop().time() + settings.timeout_s
        with gate.hold() as share:
            try:
                async with asyncio.timeout_at(deadline):
                    body = await protocol.read_body(request.stream(), limits, share.grow)
            except TimeoutError:
                raise Refusal(408, "slow_body", f"body not there after {settings.timeout_s:g} s") from None
            kind = request.headers.get("content-type")
            # In a thread: taking apart a large body would hold up everybody else.
            pictures = await asyncio.to_thread(protocol.pictures, kind, body, limits)
            if count not in (None, len(pictures)):
                raise Refusal(400, "wrong_number", f"{len(pictures)} pictures: accepted here: {count}")
            asked = time.perf_counter()
            reply = await answered(model, deadline, verb, pictures, *args)
        if reply["bad"]:
            index, error = reply["bad"][0]
            raise Refusal.of_picture(error, index, len(pictures))
        if reply["fault"] is not None:
            raise _fault()
        done = time.perf_counter()
        busy_s = reply["model_s"] + (reply["render_s"] or 0.0)
        timing = Timing(
            queue_ms=_ms(done - asked - busy_s),
            render_ms=None if reply["render_s"] is None else _ms(reply["render_s"]),
            model_ms=_ms(reply["model_s"]),
            total_ms=_ms(done - start),
        )
        return model, reply["results"], timing

    async def answered(model: Endpoint, deadline: float, verb: str, *args: Any) -> Reply:
        try:
            async with asyncio.timeout_at(deadline):
                return await model.ask(verb, *args)
        except TimeoutError:
            raise Refusal(504, "timeout", f"no answer after {settings.timeout_s:g} s") from None

    async def of_gallery(name: str, verb: str, *args: Any) -> Any:
        """A verb that takes no pictures."""
        deadline = asyncio.get_running_loop().time() + settings.timeout_s
        return (await answered(find(name), deadline, verb, *args))["results"]

    takes_pictures: dict[str, Any] = {"requestBody": _BODY}
    gives_picture: dict[int | str, dict[str, Any]] = {200: {"content": {PNG: {"schema": _PICTURE}}}}

    @app.post(
        "/v1/models/{name}/predict",
        response_model=Answer,
        responses={**answers, **gives_picture, 406: {**answers["default"], "description": _NO_PNG}},
        openapi_extra=takes_pictures,
    )
    async def predict(
        name: str,
        request: Request,
        top: Annotated[int, Query(ge=1, le=100_000, description="labels per picture at most")] = 5,
        min_score: MinScore = None,
    ) -> Response:
        """Predictions for one picture (its bytes as the body) or several (multipart/form-data).

        One bad picture refuses the whole request and is named by its position. Of a detection the objects
        whose score is the model's threshold or more, or ``min_score`` or more where that is given.
        With Accept: image/png the prediction of one picture as a picture itself, where the task has that:
        class ids of a segmentation.
        """
        if protocol.prefers_png(request.headers.get("accept")):
            _, png, _ = await ask(name, request, "as_png", count=1)
            return Response(png, media_type=PNG)
        model, found, timing = await ask(name, request, "predict", top, min_score)
        return _json(Answer, model, timing, predictions=found)

    @app.post(
        "/v1/models/{name}/embed",
        response_model=Embeddings,
        responses=answers,
        openapi_extra=takes_pictures,
    )
    async def embed(
        name: str,
        request: Request,
        stage: Annotated[str | None, Query(description="of the backbone; none: what the task uses")] = None,
    ) -> Response:
        """Embeddings of pictures: those the task trains, else pooled features, or those of a stage."""
        model, found, timing = await ask(name, request, "embed", stage)
        return _json(Embeddings, model, timing, embeddings=found)

    @app.post(
        "/v1/models/{name}/draw",
        response_class=_Png,
        responses={**answers, **gives_picture},
        openapi_extra=takes_pictures,
    )
    async def draw(name: str, request: Request, min_score: MinScore = None) -> Response:
        """The prediction of one picture drawn over it, as PNG."""
        _, png, _ = await ask(name, request, "draw", min_score, count=1)
        return Response(png, media_type=PNG)

    @app.post(
        "/v1/models/{name}/enroll",
        response_model=Enrolled,
        responses=answers,
        openapi_extra=takes_pictures,
    )
    async def enroll(name: str, request: Request, person: Person) -> Response:
        """Make a person known by one picture or more; the same picture again changes nothing.

        Every replica knows the person once this is answered. No picture is kept, only its embedding.
        """
        person = _named(person)
        model, found, timing = await ask(name, request, "enroll", person)
        return _json(Enrolled, model, timing, person=person, pictures=found)

    @app.post(
        "/v1/models/{name}/identify",
        response_model=Identities,
        responses=answers,
        openapi_extra=takes_pictures,
    )
    async def identify(
        name: str,
        request: Request,
        top: Annotated[int, Query(ge=1, le=1000, description="similar people per picture at most")] = 5,
    ) -> Response:
        """Who of the enrolled people is shown, and who is similar."""
        model, found, timing = await ask(name, request, "identify", top)
        return _json(Identities, model, timing, **found)

    @app.post(
        "/v1/models/{name}/verify",
        response_model=Verified,
        responses=answers,
        openapi_extra=takes_pictures,
    )
    async def verify(
        name: str,
        request: Request,
        person: Annotated[str | None, Query(min_length=1, description="enrolled")] = None,
    ) -> Response:
        """Whether two pictures show one person; or one picture the person named."""
        model, found, timing = await ask(name, request, "verify", person, count=2 if person is None else 1)
        return _json(Verified, model, timing, **found)

    @app.get("/v1/models/{name}/people", response_model=People, responses=without_pictures)
    async def people(name: str) -> dict[str, Any]:
        """The enrolled people and the number of pictures of each."""
        return {"people": await of_gallery(name, "people")}

    # "path": names that earlier versions enrolled may hold a slash.
    @app.delete("/v1/models/{name}/people/{person:path}", response_model=Removed, responses=without_pictures)
    async def remove(name: str, person: Annotated[str, Path(min_length=1)]) -> dict[str, Any]:
        """Forget a person."""
        return {"person": person, "pictures": await of_gallery(name, "remove", person)}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page.render(app.openapi(), models[0].name if models else ""))

    _errors_as_json(app)
    return app


def _errors_as_json(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(query.refusal(error.errors()[0]))

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
    """The outermost boundary: our own faults are logged here and still answered as JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http" or began:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await _error(_fault())(scope, receive, send)


def _fault() -> Refusal:
    return Refusal(500, "internal", "the server failed, not the request; its log says why")


def _error(refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    error = {"status": refusal.status, "reason": refusal.reason, "detail": refusal.detail}
    return JSONResponse({"error": error}, refusal.status, headers)


def _json(shape: type[BaseModel], model: Endpoint, timing: Timing, **found: Any) -> Response:
    """The answer, written here: FastAPI would walk through every prediction a second time."""
    answer = shape(model=model.name, version=model.version, timing=timing, **found)
    return Response(answer.model_dump_json(), media_type="application/json")


def _named(person: str) -> str:
    """The name as it is kept; told before a body is read."""
    try:
        return check_name(person)
    except DataError as error:
        raise Refusal(400, query.BAD, str(error)) from None


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)


class Remote:
    """An `Endpoint` behind a Serve handle; Ray's exceptions become refusals here."""

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
                response.cancel()  # else the replica would go on working for nobody
                raise
            except BackPressureError:
                raise Refusal(503, "overloaded", f"model {self.key!r}: queue full", RETRY_AFTER_S) from None
            except (ray.exceptions.RayActorError, DeploymentUnavailableError) as error:
                # A replica died under the request: once more elsewhere. Most verbs change nothing, a picture
                # enrolled twice is one enrolment; a removal that was done already is told as nobody there.
                if last:
                    logger.warning("%s: %s", self.key, error)
                    raise Refusal(503, "unavailable", f"model {self.key!r} is away", RETRY_AFTER_S) from None
        raise AssertionError("unreachable")


def ingress(models: Sequence[tuple[str, int | None, str, str]], settings: Serving) -> type:
    """The deployment's class. ``models``: name, version, key and deployment's name of each."""

    def build() -> FastAPI:  # runs in the replica: handles belong to a process
        return create_app(
            [
                Remote(name, version, key, serve.get_deployment_handle(deployment))
                for name, version, key, deployment in models
            ],
            settings,
        )

    made: type = serve.ingress(build)()
    return made
