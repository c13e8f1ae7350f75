"""The published JSON Schema of ``results.json``, and a check of files against it with the standard library alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    # true is a number to Python alone
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}

# what `complaint` understands; the schema keeps to it
KEYWORDS = frozenset({
    "type", "properties", "required", "items", "additionalProperties", "anyOf", "enum", "minimum", "maximum",
    "minItems", "maxItems", "$ref", "$defs", "$schema", "$id", "title", "description",
})  # fmt: skip


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `Report.to_dict` gives and ``results.json`` holds."""
    text = files("edgevision_benchmarks").joinpath("results.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def complaint(value: Any, rule: Mapping[str, Any] | None = None, where: str = "results file") -> str | None:
    """The first thing in ``value`` that the schema does not allow, in words; None where all is well.

    Args:
        value: plain values, as JSON gives them.
        rule: part of the schema; by default all of it.
        where: what to call ``value``.
    """
    rule = schema() if rule is None else rule
    if "$ref" in rule:
        return complaint(value, schema()["$defs"][rule["$ref"].rpartition("/")[2]], where)
    if "anyOf" in rule:
        found = [complaint(value, each, where) for each in rule["anyOf"]]
        # of the alternatives the first says most: the others are null
        return None if None in found else found[0]
    if "enum" in rule and value not in rule["enum"]:
        return f"{where}: expected one of {json.dumps(rule['enum'])}; got {_shown(value)}"
    types = rule.get("type", [])
    allowed = [types] if isinstance(types, str) else types
    if allowed and not any(_TYPES[name](value) for name in allowed):
        return f"{where}: expected {' or '.join(allowed)}; got {_shown(value)}"
    if isinstance(value, dict):
        return _in_object(value, rule, where)
    if isinstance(value, list):
        return _in_array(value, rule, where)
    return _in_number(value, rule, where)


def _in_object(value: dict[str, Any], rule: Mapping[str, Any], where: str) -> str | None:
    for key in rule.get("required", []):
        if key not in value:
            return f"{where}: {key!r} is missing"
    properties = rule.get("properties", {})
    for key, each in value.items():
        inner = properties.get(key, rule.get("additionalProperties"))
        if inner is not None and (found := complaint(each, inner, f"{where}.{key}")) is not None:
            return found
    return None


def _in_array(value: list[Any], rule: Mapping[str, Any], where: str) -> str | None:
    low, high = rule.get("minItems", 0), rule.get("maxItems", len(value))
    if not low <= len(value) <= high:
        return f"{where}: expected {low} to {high} items; got {len(value)}"
    for index, each in enumerate(value):
        if "items" in rule and (found := complaint(each, rule["items"], f"{where}[{index}]")) is not None:
            return found
    return None


def _in_number(value: Any, rule: Mapping[str, Any], where: str) -> str | None:
    if _TYPES["number"](value):
        low, high = rule.get("minimum", value), rule.get("maximum", value)
        # written so that NaN, which compares with nothing, is refused as well
        if not low <= value <= high:
            return f"{where}: expected {low} to {high}; got {value}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
