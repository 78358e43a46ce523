"""JSON as text <-> what Python's json makes of it: strict to read, UTF-8 to write, and bytes as
base64."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable
from typing import Any, NoReturn


def _encoder(**options: Any) -> Callable[[object], str]:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_base64, **options).encode


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


compact = _encoder(separators=(",", ":"))
"""On one line."""

indented = _encoder(indent=2)
"""For a person."""


def parse(text: str) -> Any:
    """What the text says in JSON as RFC 8259 has it, so without NaN.

    Raises JSONDecodeError for text that is not JSON; its `doc` is empty when the place is not
    known. Raises another ValueError for JSON that Python cannot hold.
    """
    try:
        return _decode(text)
    except RecursionError:
        raise ValueError("the JSON nests too deep") from None


def is_cut_short(error: json.JSONDecodeError) -> bool:
    """Whether the text may be JSON as soon as more of it follows."""
    return bool(error.doc) and error.pos >= len(error.doc.rstrip())


def _refuse(constant: str) -> NoReturn:
    raise json.JSONDecodeError(f"{constant} is not JSON", "", 0)


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is beyond the range of floats")
    return number


_decode = json.JSONDecoder(parse_constant=_refuse, parse_float=_float).decode
