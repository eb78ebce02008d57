"""XML and JSON of label files: what their first bytes tell, and the tree of an XML."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from tlray.errors import DataError

_ELEMENT = re.compile(r"<([A-Za-z_][\w.\-]*)")


def names_in_head(head: str, keys: str) -> list[str]:
    """Texts that stand behind a key (a regular expression) in the beginning of a JSON file."""
    texts = re.findall(
        rf'"(?:{keys})"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{{4}})*")', head
    )
    return [str(json.loads(text)) for text in texts]


def root_element(head: str) -> str:
    """Name of a document's outermost element; "" where the text is no XML."""
    text = head.lstrip()
    if not text.startswith("<"):
        return ""
    first = _ELEMENT.search(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    return first[1] if first else ""


def parse(where: str, data: bytes, accepted: str) -> ElementTree.Element:
    """The tree of a file, names without namespaces.

    Raises DataError, with line and column, for what is no XML or has a DOCTYPE.
    """
    plain = data.replace(b"\0", b"")  # of UTF-16
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:  # what entities expand to has no bounds
        raise DataError(f"{where}: has a DOCTYPE; accepted: {accepted}, without one")
    try:
        tree = ElementTree.fromstring(data.lstrip(b" \t\r\n"))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: of its encoding
        at = getattr(error, "position", None)
        blank = len(data) - len(data.lstrip(b" \t\r\n"))
        lines = data[:blank].count(b"\n")
        place = f" line {at[0] + lines}, column {at[1]}" if at else ""
        raise DataError(f"{where}{place}: no valid XML; accepted: {accepted}") from None
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    return tree
