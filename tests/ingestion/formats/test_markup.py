"""XML: its kind by the first bytes, and its mistakes."""

from __future__ import annotations

import pytest

from tlray.errors import DataError
from tlray.ingestion.formats import markup
from tlray.ingestion.formats.listing import start_of_text


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"<annotation><object/>", "annotation"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- <x> -->\n<annotations verified='yes'>", "annotations"),
        ("<?xml version='1.0'?><annotation/>".encode("utf-16"), "annotation"),
        (b"  <annotation", "annotation"),
        (b"text <annotation>", ""),
        (b"", ""),
    ],
)
def test_root_elements(head: bytes, name: str) -> None:
    assert markup.root_element(start_of_text(head)) == name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(encoding: str) -> None:
    text = "<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;'>]><a>&c;</a>"
    with pytest.raises(DataError, match=r"^x: has a DOCTYPE; accepted: XML, without one$"):
        markup.parse_xml("x", text.encode(encoding), "XML")


def test_mistakes_name_line_and_column() -> None:
    with pytest.raises(DataError, match=r"^x line 3, column 4: no valid XML; accepted: y$"):
        markup.parse_xml("x", b"\n\n<a>&</a>", "y")
    assert markup.parse_xml("x", b"\n <a>1</a>", "y").text == "1"


def test_namespaces_are_left_out() -> None:
    tree = markup.parse_xml("x", b"<a xmlns='u' xmlns:v='w'><v:b>1</v:b></a>", "y")
    assert (tree.tag, tree.findtext("b")) == ("a", "1")


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "big5", "Shift_JIS", "euc-jp", "euc-kr"])
def test_encodings_of_east_asia(encoding: str) -> None:
    name = {"big5": "\u8c93", "euc-kr": "\uace0\uc591\uc774"}.get(encoding, "\u732b")
    data = f'\n<?xml version="1.0" encoding="{encoding}"?>\n<a>{name}</a>'.encode(encoding)
    assert markup.parse_xml("x", data, "y").text == name
    with pytest.raises(DataError, match="has a DOCTYPE"):
        markup.parse_xml("x", data.replace(b"<a>", b"<!DOCTYPE a><a>"), "y")
    with pytest.raises(DataError, match=f"^x: no text in {encoding.lower()}, which it declares"):
        markup.parse_xml("x", data.replace(b"</a>", b"\x81</a>"), "y")
