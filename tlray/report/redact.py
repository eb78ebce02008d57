"""Keep credentials out of what is shown, wherever they slipped in."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"
_NAMES = re.compile(r"secret|passw|token|credential|api_?key|access_?key|private_?key|auth", re.IGNORECASE)
_PATTERNS = [
    (re.compile(r"(?<=://)[^/@\s'\"]+@"), f"{HIDDEN}@"),  # user:password@host
    (re.compile(r"([?&][\w.-]*(?:sig|token|key|secret|credential|password)[\w.-]*=)[^&\s'\"]+", re.I),
     rf"\1{HIDDEN}"),  # signed query
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), HIDDEN),  # access key ids
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"), HIDDEN),  # hub tokens
]  # fmt: skip


def redact(text: str) -> str:
    """The text without user information in URIs, signed query values and known kinds of key."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_tree(tree: Any) -> Any:
    """A plain tree with every text redacted, and everything hidden that a key calls secret."""
    if isinstance(tree, dict):
        return {
            key: HIDDEN if _NAMES.search(str(key)) and value not in (None, "") else redact_tree(value)
            for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        return [redact_tree(value) for value in tree]
    return redact(tree) if isinstance(tree, str) else tree
