"""JSON that strangers send: parsed within limits, and read field by field; errors name the field.

Nothing here raises anything but `ApiError`, whatever the bytes are.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from mmrl.serving.limits import ApiError

DEPTH = 64  # of arrays and objects in one another


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises `ApiError` 400 for what is no UTF-8 or no JSON, for NaN and infinite numbers, for lone
    surrogates, which no tokenizer encodes, and for what nests deeper than `DEPTH`.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        _check(value)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else error
        raise ApiError(400, f"the body is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, got {_kind(value)}")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _check(value: Any) -> None:
    """Raises ValueError for depth and surrogates, without recursion."""
    level = [value]
    for _ in range(DEPTH):
        texts = [x for x in level if isinstance(x, str)]
        texts += [key for x in level if isinstance(x, dict) for key in x]
        "".join(texts).encode("utf-8")
        level = [
            item
            for x in level
            if isinstance(x, dict | list)
            for item in (x.values() if isinstance(x, dict) else x)
        ]
        if not level:
            return
    raise ValueError(f"it nests deeper than {DEPTH}")


def number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number in [low, high]; `default` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(name, f"a number from {low:g} to {high:g}", value)
    return float(value)


def integer(body: Mapping[str, Any], name: str, default: Any, low: int, high: int = 2**63) -> Any:
    """An integer in [low, high]; `default` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        most = "" if high == 2**63 else f" to {high}"
        raise wrong(name, f"an integer from {low}{most}", value)
    return value


def boolean(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def string(body: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A text; `default` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise wrong(name, "a string", value)
    return value


def strings(body: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    """A text or a list of at most `most`, none of them empty."""
    value = body.get(name)
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise wrong(name, "a string or a list of strings", value)
    if len(found) > most:
        raise ApiError(400, f"{name} may have {most} strings, got {len(found)}", name)
    return tuple(filter(None, found))


def mapping(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object; {} where it is absent or null."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    return value


def objects(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects; [] where it is absent or null."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
        raise wrong(name, "a list of objects", value)
    return value


def wrong(name: str, wanted: str, value: Any) -> ApiError:
    return ApiError(400, f"{name} must be {wanted}, got {_kind(value)}", name)


def unsupported(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name} is not supported: {why}", name, "unsupported_parameter")


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
