"""The parameters of a request: which there are, and what is said of those that are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from tlray.errors import nearest
from tlray.serving.protocol import Refusal

BAD = "bad_parameter"  # reason of the refusals here
_ACCEPTED = {  # pydantic's kinds of mistakes -> what is accepted, in our words
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_parsing": "a number",
    "string_too_short": "what is not empty",
}


async def known(request: Request) -> None:
    """Refuse parameters that the route does not know, or that are given twice: neither would have an effect.

    Health checks may carry whatever their callers like.
    """
    if not request.scope["path"].startswith("/v1/"):
        return
    names = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, times in given.items():
        if name not in names:
            hint = nearest(name, names) if names else "accepted: none here"
            raise Refusal(400, BAD, f"query {name[:100]!r}: unknown; {hint}")
        if times > 1:
            raise Refusal(400, BAD, f"query {name}: given {times} times; accepted: once")


def refusal(mistake: Mapping[str, Any]) -> Refusal:
    """The refusal that a mistake found by pydantic means."""
    kind, name = mistake["loc"][0], mistake["loc"][-1]
    where = " ".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "missing":
        example = f"; accepted: ?{name}=..." if kind == "query" else ""
        return Refusal(400, BAD, f"{where}: is missing{example}")
    given = f" = {mistake['input']!r:.100}" if "input" in mistake else ""
    said = _ACCEPTED.get(mistake["type"], mistake["msg"].removeprefix("Input should be "))
    return Refusal(400, BAD, f"{where}{given}: accepted: {said}")
