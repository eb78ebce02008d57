"""The HTTP protocol: how a request's body is parsed, the shapes of all answers, and the form of every error.

Needs neither Ray nor torch. Every mistake of a client is a `Refusal` with an HTTP status; the application
turns it into ``{"error": {"status", "reason", "detail"}}``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from pydantic import BaseModel, Field
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tlray.config import Serving
from tlray.errors import PictureError

RETRY_AFTER_S = 1
MULTIPART = "multipart/form-data"
RAW = ("image/*", "application/octet-stream")
_QUALITY = re.compile(r"[01](\.[0-9]{0,3})?")
ACCEPTED = f"accepted: {RAW[0]}, {RAW[1]} or {MULTIPART}"


class Refusal(Exception):
    """An error that a request is answered with: HTTP status, one-word reason, detail in one line."""

    def __init__(self, status: int, reason: str, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.retry_after_s = status, reason, detail, retry_after_s

    def __reduce__(self) -> tuple[type[Refusal], tuple[int, str, str, int | None]]:
        # It is pickled between processes, and an exception's own way would pass the message alone.
        return Refusal, (self.status, self.reason, self.detail, self.retry_after_s)

    @classmethod
    def of_fault(cls) -> Refusal:
        """The refusal for a failure of the server itself."""
        return cls(500, "internal", "the server failed, not the request; its log says why")

    @classmethod
    def of_picture(cls, error: PictureError, index: int, num_pictures: int) -> Refusal:
        """The refusal for a bad picture; among several its position is named, counted from 0."""
        where = f"picture {index} of {num_pictures} (counted from 0): " if num_pictures > 1 else ""
        return cls(error.status, error.kind, where + str(error))


class Error(BaseModel):
    """Why a request was refused."""

    status: int = Field(description="the HTTP status")
    reason: str = Field(description="one word for programs, as in not_a_picture, truncated, overloaded")
    detail: str = Field(description="one line for people: the value, where it stood, what is accepted")


class ErrorAnswer(BaseModel):
    """Body of every answer with status 400 or above."""

    error: Error


class Timing(BaseModel):
    """Where the time went, in milliseconds, as clocks on the way measured it."""

    queue_ms: float = Field(description="waiting for a replica and for the batch, transport included")
    render_ms: float | None = Field(None, description="bytes to pixels, of the whole batches it ran in")
    model_ms: float = Field(description="the predictor, of the whole batches that the pictures ran in")
    total_ms: float = Field(description="from the request's header to this answer, upload included")


class Answer(BaseModel):
    """Predictions, one per picture, in the order of the pictures."""

    model: str
    version: int | None = Field(description="number in the registry; null: a bundle outside of it")
    predictions: list[dict[str, Any]]
    timing: Timing


class Embeddings(BaseModel):
    """Embeddings, one per picture, in the order of the pictures."""

    model: str
    version: int | None
    embeddings: list[list[float]]
    timing: Timing


class Enrolled(BaseModel):
    """A person after pictures were enrolled."""

    model: str
    version: int | None
    person: str
    pictures: int = Field(description="how many different ones are enrolled of this person now")
    timing: Timing


class Similar(BaseModel):
    """A person of the gallery beside a picture."""

    person: str
    similarity: float = Field(description="cosine, -1..1, of the person's most similar picture")


class Identity(BaseModel):
    """Whom a picture shows."""

    person: str | None = Field(description="the most similar one, if from the threshold on; else null")
    accepted: bool | None = Field(description="null: the model has no threshold")
    similar: list[Similar] = Field(description="most similar first")


class Identities(BaseModel):
    """Identities, one per picture, in the order of the pictures."""

    model: str
    version: int | None
    threshold: float | None
    identities: list[Identity]
    timing: Timing


class Verified(BaseModel):
    """Whether two pictures, or a picture and a person, are the same."""

    model: str
    version: int | None
    similarity: float
    same: bool | None = Field(description="similarity from the threshold on; null: the model has none")
    threshold: float | None
    timing: Timing


class People(BaseModel):
    """The gallery of a model: pictures by person."""

    people: dict[str, int]


class Removed(BaseModel):
    """A person who is no longer enrolled."""

    person: str
    pictures: int


class Size(BaseModel):
    """Pixels."""

    width: int
    height: int


class ModelCard(BaseModel):
    """A served model."""

    name: str
    version: int | None
    task: str
    labels: list[str]
    metrics: dict[str, float]
    input: Size


class ModelList(BaseModel):
    """All served models."""

    models: list[ModelCard]


class Health(BaseModel):
    """State of the process (livez) or of all models (readyz)."""

    status: str


class Reply(TypedDict):
    """The answer of a model's replica to the application; times in seconds."""

    results: Any  # one for each sound picture, or the one answer to all pictures together
    bad: list[tuple[int, PictureError]]  # position in the request and error of each bad picture
    fault: str | None  # why the predictor failed; not a mistake of the client
    render_s: float | None  # None: the predictor does not measure it
    model_s: float


@dataclass(frozen=True)
class Limits:
    """How large one request may be."""

    max_body: int  # bytes
    max_pictures: int

    @classmethod
    def of(cls, settings: Serving) -> Limits:
        """The limits in the settings."""
        return cls(int(settings.max_body_mb * 1_000_000), settings.max_pictures)


def check_headers(headers: dict[str, str], limits: Limits) -> None:
    """Refuse what the headers alone show to be wrong: 415 for type and encoding, 413 for the length."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(415, "unsupported_encoding", f"Content-Encoding {encoding!r}: accepted: none")
    kind = media_type(headers.get("content-type"))
    if kind != MULTIPART and kind != RAW[1] and not kind.startswith("image/"):
        raise Refusal(415, "unsupported_media_type", f"Content-Type {kind!r}: {ACCEPTED}")
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limits.max_body:
        raise too_large(limits)


def media_type(content_type: str | None) -> str:
    """``image/png; q=1`` -> ``image/png``; absent means plain bytes (RFC 9110, 8.3)."""
    return (content_type or RAW[1]).partition(";")[0].strip().lower()


def too_large(limits: Limits) -> Refusal:
    """The refusal of a body above the limit."""
    return Refusal(413, "too_large", f"body: accepted: at most {limits.max_body} bytes")


def prefers_png(accept: str | None) -> bool:
    """Whether an Accept header prefers image/png to JSON (RFC 9110, 12.5.1)."""
    qualities = {"image/png": 0.0, "application/json": 0.0}
    for item in (accept or "").split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:].strip() for p in parameters if p.startswith("q=")), "1")
        if kind in qualities:
            qualities[kind] = float(quality) if _QUALITY.fullmatch(quality) else 0.0
    return qualities["image/png"] > qualities["application/json"]


async def read_body(chunks: AsyncIterator[bytes], limits: Limits, grow: Callable[[int], None]) -> bytes:
    """Collect a body; 413 as soon as it passes the limit, without reading the rest.

    ``grow`` is called with the size of each chunk before it is kept.
    """
    body = bytearray()
    async for chunk in chunks:
        if len(body) + len(chunk) > limits.max_body:
            raise too_large(limits)
        grow(len(chunk))
        body += chunk
    return bytes(body)


def pictures(content_type: str | None, body: bytes, limits: Limits) -> list[bytes]:
    """The encoded pictures in a body. Whether their bytes are a picture shows later, when they are decoded.

    Raises Refusal: 400 for an empty body, a damaged multipart body or a part that is no file; 413 for too
    many pictures.
    """
    if media_type(content_type) == MULTIPART:
        return _Multipart(content_type or "", limits).read(body)
    if not body:
        raise Refusal(400, "empty", "body of 0 bytes: accepted: the bytes of a picture")
    return [body]


class _Multipart:
    """Parses a multipart/form-data body (RFC 7578) in memory; its size has been limited before."""

    def __init__(self, content_type: str, limits: Limits) -> None:
        # The parser wants bytes, and the header was decoded as latin-1.
        _, options = parse_options_header(content_type.encode("latin-1", "replace"))
        boundary = options.get(b"boundary", b"")
        if not boundary:
            raise _malformed("its Content-Type names no boundary")
        self.limits = limits
        self.files: list[bytes] = []
        self.ended = False
        self.field, self.value, self.disposition = bytearray(), bytearray(), b""
        self.spans: list[bytes] = []
        try:
            self.parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def read(self, body: bytes) -> list[bytes]:
        """All files of the body, in order."""
        try:
            self.parser.write(body)
            self.parser.finalize()
        except FormParserError as error:
            raise _malformed((str(error).splitlines() or ["damaged"])[0][:120]) from None
        if not self.ended:
            raise _malformed("it ends before its closing boundary")
        if not self.files:
            raise Refusal(400, "empty", "multipart body without a file: accepted: one picture or more")
        return self.files

    def _begin(self) -> None:
        if len(self.files) >= self.limits.max_pictures:
            raise Refusal(
                413,
                "too_many_pictures",
                f"multipart body: accepted: at most {self.limits.max_pictures} pictures",
            )
        self.spans, self.disposition = [], b""

    # The parser may pass a header in several pieces.
    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self.field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header_end(self) -> None:
        if self.field.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.field.clear()
        self.value.clear()

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self.disposition)
        if kind != b"form-data" or b"filename" not in options:
            name = options.get(b"name", b"").decode("utf-8", "replace")[:40]
            raise Refusal(
                400,
                "not_a_file",
                f"multipart part {len(self.files)} (name {name!r}): no file; accepted: parts with a filename "
                "that hold a picture",
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.spans.append(data[start:end])

    def _end_part(self) -> None:
        self.files.append(b"".join(self.spans))

    def _end(self) -> None:
        self.ended = True


def _malformed(why: str) -> Refusal:
    return Refusal(400, "malformed_multipart", f"multipart body: {why}")
