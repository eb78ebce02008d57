"""XML and JSON of label files: keys and names in their first bytes, and parsing of XML."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from xml.etree import ElementTree

from tlray.errors import DataError

_BLANK = b" \t\r\n"
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.\-]+)[\"'][^>]*\?>")
# Declared encoding -> Python's name of the widest that includes it: many declare gb2312 and write GBK.
_EAST_ASIA = {
    **dict.fromkeys(("gb2312", "gbk", "cp936", "gb18030"), "gb18030"),
    **dict.fromkeys(("big5", "big5-hkscs"), "big5hkscs"),
    **dict.fromkeys(("shift_jis", "sjis", "windows-31j", "cp932"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "cp949"), "cp949"),
    "euc-jp": "euc_jp",
}
_ELEMENT = re.compile(r"<([A-Za-z_][\w.\-]*)")


def names_in_head(head: str, keys: str) -> list[str]:
    """Texts that follow a key (a regular expression) in the beginning of a JSON file."""
    texts = re.findall(
        rf'"(?:{keys})"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{{4}})*")', head
    )
    return [str(json.loads(text)) for text in texts]


def root_element(head: str) -> str:
    """Name of the outermost element of a document; "" where the text is no XML."""
    text = head.lstrip()
    if not text.startswith("<"):
        return ""
    element = _ELEMENT.search(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    return element[1] if element else ""


def parse_json(where: str, data: bytes, accepted: str) -> Any:
    """The content of a JSON file. Raises DataError, with the line, for what is no JSON."""
    try:
        return json.loads(data)
    except ValueError as error:
        place = f"line {error.lineno}, " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{where}: {place}no valid JSON; accepted: {accepted}") from None


def number(text: str | None) -> float:
    """The number in a text, nan where there is none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def parse_xml(where: str, data: bytes, accepted: str) -> ElementTree.Element:
    """The tree of an XML file, with names without namespaces.

    Raises DataError, with line and column, for what is no XML or has a DOCTYPE.
    """
    text = _decoded(where, data, accepted)
    plain = data.replace(b"\0", b"") if text is None else text.encode()  # of UTF-16
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:  # what entities expand to has no bounds
        raise DataError(f"{where}: has a DOCTYPE; accepted: {accepted}, without one")
    try:
        tree = ElementTree.fromstring(data.lstrip(_BLANK) if text is None else text)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: of its encoding
        position = getattr(error, "position", None)
        num_leading = len(data) - len(data.lstrip(_BLANK))
        lines = data[:num_leading].count(b"\n")
        place = f" line {position[0] + lines}, column {position[1]}" if position else ""
        raise DataError(f"{where}{place}: no valid XML; accepted: {accepted}") from None
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    return tree


def _decoded(where: str, data: bytes, accepted: str) -> str | None:
    """The text, without its declaration, of a file in an encoding of East Asia, which the parser cannot read.

    None for other files. Raises DataError where the bytes do not have the declared encoding.
    """
    declared = _DECLARED.match(data)
    encoding = declared[1].decode().lower() if declared else ""
    if declared is None or encoding not in _EAST_ASIA:
        return None
    try:
        return data[declared.end() :].decode(_EAST_ASIA[encoding])
    except UnicodeDecodeError:
        raise DataError(f"{where}: no text in {encoding}, which it declares; accepted: {accepted}") from None
