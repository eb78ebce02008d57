"""Checks the query parameters of a request, and says what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from tlray.errors import nearest
from tlray.serving.protocol import Refusal

BAD = "bad_parameter"  # reason of the refusals here
_ACCEPTED = {  # pydantic's type of error -> what is accepted
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_parsing": "a number",
    "string_too_short": "what is not empty",
}


async def check(request: Request) -> None:
    """Refuse a parameter that the route does not have, or that occurs twice: it would have no effect.

    Health checks may have any parameters.
    """
    if not request.scope["path"].startswith("/v1/"):
        return
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    counts = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in counts.items():
        if name not in known:
            hint = nearest(name, known) if known else "accepted: none here"
            raise Refusal(400, BAD, f"query {name[:100]!r}: unknown; {hint}")
        if count > 1:
            raise Refusal(400, BAD, f"query {name}: given {count} times; accepted: once")


def refusal(error: Mapping[str, Any]) -> Refusal:
    """The refusal for an error that pydantic reports."""
    kind, name = error["loc"][0], error["loc"][-1]
    place = " ".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        example = f"; accepted: ?{name}=..." if kind == "query" else ""
        return Refusal(400, BAD, f"{place}: is missing{example}")
    value = f" = {error['input']!r:.100}" if "input" in error else ""
    accepted = _ACCEPTED.get(error["type"], error["msg"].removeprefix("Input should be "))
    return Refusal(400, BAD, f"{place}{value}: accepted: {accepted}")
