"""Bodies taken apart: what is accepted, and that nothing which is not ends in anything but a Refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray.config import Serving
from tlray.errors import PictureError
from tlray.serving import protocol
from tlray.serving.protocol import Limits, Refusal

LIMITS = Limits(max_body=1000, max_pictures=3)
FORM = "multipart/form-data; boundary=XX"


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.jpg"') -> bytes:
    return b"--XX\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def refusal(content_type: str | None, body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        protocol.pictures(content_type, body, LIMITS)
    return caught.value


def test_raw_body_is_one_picture() -> None:
    for kind in ("image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream", None):
        assert protocol.pictures(kind, b"\x00abc", LIMITS) == [b"\x00abc"]


def test_multipart_keeps_order_and_every_byte() -> None:
    contents = [bytes(range(256)), b"\r\n--X\r\n", b""]
    body = b"".join(part(c) for c in contents) + b"--XX--\r\n"
    assert protocol.pictures(FORM, body, LIMITS) == contents
    assert protocol.pictures('Multipart/Form-Data; boundary="XX"', body, LIMITS) == contents


@pytest.mark.parametrize(
    ("content_type", "body", "status", "reason"),
    [
        ("image/jpeg", b"", 400, "empty"),
        ("multipart/form-data", b"--XX--", 400, "malformed_multipart"),
        (FORM, b"", 400, "malformed_multipart"),
        (FORM, b"no boundary here", 400, "malformed_multipart"),
        (FORM, part(b"a"), 400, "malformed_multipart"),  # no end
        (FORM, b"--XX--\r\n", 400, None),
        (FORM, part(b"a", 'form-data; name="top"') + b"--XX--\r\n", 400, "not_a_file"),
        (FORM, part(b"a", "attachment") + b"--XX--\r\n", 400, "not_a_file"),
        (FORM, part(b"a") * 4 + b"--XX--\r\n", 413, "too_many_pictures"),
        (f"multipart/form-data; boundary={'x' * 300}", b"a", 400, "malformed_multipart"),
    ],
)
def test_what_is_refused(content_type: str, body: bytes, status: int, reason: str | None) -> None:
    error = refusal(content_type, body)
    assert error.status == status
    assert reason in (None, error.reason)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/html"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, None),
        ({"content-type": "image/jpeg", "content-encoding": "gzip"}, 415),
        ({"content-type": "image/jpeg", "content-encoding": "identity"}, None),
        ({"content-length": "1001"}, 413),
        ({"content-length": "9" * 5000}, 413),
        ({"content-length": "1000"}, None),
        ({"content-length": "²"}, None),
        ({}, None),
    ],
)
def test_headers_alone(headers: dict[str, str], status: int | None) -> None:
    if status is None:
        protocol.check_headers(headers, LIMITS)
        return
    with pytest.raises(Refusal) as caught:
        protocol.check_headers(headers, LIMITS)
    assert caught.value.status == status


def test_a_body_above_the_limit_is_not_read_to_its_end() -> None:
    read: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 300

    with pytest.raises(Refusal) as caught:
        asyncio.run(protocol.read_body(endless(), LIMITS, lambda _: None))
    assert caught.value.status == 413
    assert len(read) == 4


def test_a_picture_of_several_is_named() -> None:
    error = PictureError("truncated", "ends too soon")
    assert Refusal.of_picture(error, 2, 3).detail.startswith("picture 2 of 3")
    assert Refusal.of_picture(error, 0, 1).detail == "ends too soon"
    assert Refusal.of_picture(error, 0, 1).status == 400


def test_limits_follow_the_settings() -> None:
    assert Limits.of(Serving(max_body_mb=0.5, max_pictures=7)) == Limits(500_000, 7)


# Bytes that are nearly a multipart body get further than random ones.
pieces = st.sampled_from(
    [b"--XX", b"--XX\r\n", b"\r\n", b"--", b"--XX--", b"Content-Disposition: ", b'form-data; filename="a"',
     b"form-data; filename*=UTF-8''a", b"\r\n\r\n", b":", b'"', b";", b"\x00\xff"]
)  # fmt: skip
bodies = st.one_of(st.binary(max_size=400), st.lists(pieces | st.binary(max_size=8)).map(b"".join))
types = st.one_of(
    st.none(),
    st.sampled_from(
        [FORM, "image/jpeg", "multipart/form-data; boundary=", 'multipart/form-data; boundary="']
    ),
    st.text(st.characters(max_codepoint=255), max_size=60).map(lambda t: f"multipart/form-data;{t}"),
    st.text(st.characters(max_codepoint=255), max_size=60),
)


@settings(max_examples=400, deadline=None)
@given(content_type=types, body=bodies)
def test_any_bytes_are_pictures_or_refused_as_the_clients_mistake(
    content_type: str | None, body: bytes
) -> None:
    try:
        protocol.check_headers({} if content_type is None else {"content-type": content_type}, LIMITS)
        files = protocol.pictures(content_type, body, LIMITS)
    except Refusal as error:
        assert 400 <= error.status < 500
        assert error.detail and "\n" not in error.detail
    else:
        assert 1 <= len(files) <= LIMITS.max_pictures


contents = st.lists(
    st.binary(max_size=60).filter(lambda c: b"\r\n--XX" not in b"\r\n" + c), min_size=1, max_size=3
)


@given(contents=contents)
def test_what_a_client_sends_is_what_comes_out(contents: list[bytes]) -> None:
    body = b"".join(part(c) for c in contents) + b"--XX--\r\n"
    assert protocol.pictures(FORM, body, LIMITS) == contents
