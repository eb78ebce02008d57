"""All routes of the HTTP application.

Every mistake of a client is a `Refusal`, which the application writes as JSON.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from tlray.errors import DataError
from tlray.serving import page, parameters, protocol
from tlray.serving.endpoints import Answered, Endpoints
from tlray.serving.gallery import MAX_NAME, check_name
from tlray.serving.protocol import (
    RETRY_AFTER_S,
    Answer,
    Embeddings,
    Enrolled,
    Identities,
    ModelCard,
    People,
    Refusal,
    Removed,
    Verified,
)

PNG = "image/png"
_PICTURE = {"type": "string", "format": "binary"}
_ONE_PICTURE = {"schema": {**_PICTURE, "description": "the bytes of one picture"}}
_PARTS = {
    "type": "object",
    "description": "one file part per picture, under any name",
    "properties": {"file": {"type": "array", "items": _PICTURE}},
}
_BODY = {
    "required": True,
    "content": {
        "image/*": _ONE_PICTURE,
        "application/octet-stream": _ONE_PICTURE,
        protocol.MULTIPART: {"schema": _PARTS},
    },
}
_DESCRIPTIONS: dict[int | str, str] = {
    400: "empty or truncated picture, too few or many, damaged multipart body, bad parameter",
    404: "no such model; of people: a task without a gallery, nobody of that name",
    408: "the body did not arrive in time",
    413: "body too large, too many pixels, too many pictures",
    415: "not a picture, or an unsupported Content-Type",
    503: "overloaded or not ready; Retry-After says when to come again",
    504: "no prediction in time",
    "default": "any other error",  # also keeps FastAPI from promising a 422
}

Responses = dict[int | str, dict[str, Any]]
REFUSALS: Responses = {
    status: {"description": text, "model": protocol.ErrorAnswer} for status, text in _DESCRIPTIONS.items()
}
NOT_READY: Responses = {503: REFUSALS[503]}
WITHOUT_PICTURES: Responses = {status: REFUSALS[status] for status in (404, 503, "default")}
GIVES_PNG: Responses = {200: {"content": {PNG: {"schema": _PICTURE}}}}
NO_PNG: Responses = {
    406: {
        "description": "Accept: image/png, and the task's predictions are no pictures",
        "model": protocol.ErrorAnswer,
    }
}
TAKES_PICTURES: dict[str, Any] = {"requestBody": _BODY}

MinScore = Annotated[
    float | None,
    Query(ge=0, le=1, allow_inf_nan=False, description="of objects; none: the model's threshold"),
]
Person = Annotated[
    str, Query(description=f"1 to {MAX_NAME} characters that can be seen, and no slash; more than dots")
]

router = APIRouter()


class _Png(Response):
    media_type = PNG


@router.get("/livez", response_model=protocol.Health, summary="This process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz", response_model=protocol.Health, responses=NOT_READY, summary="Every model is warmed up"
)
async def readyz(request: Request) -> dict[str, str]:
    """200 once every model has loaded its bundle and run its warm-up."""
    missing = await _endpoints(request).not_ready()
    if missing:
        raise Refusal(503, "not_ready", f"not warmed up yet: {', '.join(missing)}", RETRY_AFTER_S)
    return {"status": "ready"}


@router.get("/v1/models", response_model=protocol.ModelList, responses=NOT_READY)
async def list_models(request: Request) -> dict[str, Any]:
    """The served models: name, version, task, labels, metrics of their validation, input size."""
    return {"models": await _endpoints(request).cards()}


@router.get("/v1/models/{name}", response_model=ModelCard, responses=WITHOUT_PICTURES)
async def one_model(name: str, request: Request) -> ModelCard:
    """One served model, by its name or as name@version."""
    endpoints = _endpoints(request)
    return await endpoints.card(endpoints.find(name))


@router.post(
    "/v1/models/{name}/predict",
    response_model=Answer,
    responses={**REFUSALS, **GIVES_PNG, **NO_PNG},
    openapi_extra=TAKES_PICTURES,
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
        return _png(await _endpoints(request).ask(name, request, "as_png", count=1))
    answered = await _endpoints(request).ask(name, request, "predict", top, min_score)
    return _json(Answer, answered, predictions=answered.results)


@router.post(
    "/v1/models/{name}/embed", response_model=Embeddings, responses=REFUSALS, openapi_extra=TAKES_PICTURES
)
async def embed(
    name: str,
    request: Request,
    stage: Annotated[str | None, Query(description="of the backbone; none: what the task uses")] = None,
) -> Response:
    """Embeddings of pictures: those the task trains, else pooled features, or those of a stage."""
    answered = await _endpoints(request).ask(name, request, "embed", stage)
    return _json(Embeddings, answered, embeddings=answered.results)


@router.post(
    "/v1/models/{name}/draw",
    response_class=_Png,
    responses={**REFUSALS, **GIVES_PNG},
    openapi_extra=TAKES_PICTURES,
)
async def draw(name: str, request: Request, min_score: MinScore = None) -> Response:
    """The prediction of one picture drawn over it, as PNG."""
    return _png(await _endpoints(request).ask(name, request, "draw", min_score, count=1))


@router.post(
    "/v1/models/{name}/enroll", response_model=Enrolled, responses=REFUSALS, openapi_extra=TAKES_PICTURES
)
async def enroll(name: str, request: Request, person: Person) -> Response:
    """Make a person known by one picture or more; the same picture again changes nothing.

    Every replica knows the person once this is answered. No picture is kept, only its embedding.
    """
    try:
        person = check_name(person)  # before the body is read
    except DataError as error:
        raise Refusal(400, parameters.BAD, str(error)) from None
    answered = await _endpoints(request).ask(name, request, "enroll", person)
    return _json(Enrolled, answered, person=person, pictures=answered.results)


@router.post(
    "/v1/models/{name}/identify", response_model=Identities, responses=REFUSALS, openapi_extra=TAKES_PICTURES
)
async def identify(
    name: str,
    request: Request,
    top: Annotated[int, Query(ge=1, le=1000, description="similar people per picture at most")] = 5,
) -> Response:
    """Who of the enrolled people is shown, and who is similar."""
    answered = await _endpoints(request).ask(name, request, "identify", top)
    return _json(Identities, answered, **answered.results)


@router.post(
    "/v1/models/{name}/verify", response_model=Verified, responses=REFUSALS, openapi_extra=TAKES_PICTURES
)
async def verify(
    name: str,
    request: Request,
    person: Annotated[str | None, Query(min_length=1, description="enrolled")] = None,
) -> Response:
    """Whether two pictures show one person; or one picture the person named."""
    count = 2 if person is None else 1
    answered = await _endpoints(request).ask(name, request, "verify", person, count=count)
    return _json(Verified, answered, **answered.results)


@router.get("/v1/models/{name}/people", response_model=People, responses=WITHOUT_PICTURES)
async def people(name: str, request: Request) -> dict[str, Any]:
    """The enrolled people and the number of pictures of each."""
    return {"people": await _endpoints(request).ask_gallery(name, "people")}


# "path": names that earlier versions enrolled may hold a slash.
@router.delete(
    "/v1/models/{name}/people/{person:path}", response_model=Removed, responses=WITHOUT_PICTURES
)
async def remove(
    name: str, request: Request, person: Annotated[str, Path(min_length=1)]
) -> dict[str, Any]:
    """Forget a person."""
    return {"person": person, "pictures": await _endpoints(request).ask_gallery(name, "remove", person)}


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    models = _endpoints(request).models
    return HTMLResponse(page.render(request.app.openapi(), models[0].name if models else ""))


def _endpoints(request: Request) -> Endpoints:
    """The served models of the application that has the request."""
    endpoints: Endpoints = request.app.state.endpoints
    return endpoints


def _json(shape: type[BaseModel], answered: Answered, **fields: Any) -> Response:
    """The answer, written here: FastAPI would walk through every prediction a second time."""
    model = answered.model
    answer = shape(model=model.name, version=model.version, timing=answered.timing, **fields)
    return Response(answer.model_dump_json(), media_type="application/json")


def _png(answered: Answered) -> Response:
    return Response(answered.results, media_type=PNG)
