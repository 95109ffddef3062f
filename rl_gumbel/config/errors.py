"""What is wrong with a configuration, in one line: the place, the value, the nearest known name."""

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

TEXTS: Mapping[str, str] = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "finite_number": "must be finite",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "must be {expected_tags}",
    "string_too_short": "must not be empty",
    "too_short": "must have {min_length} entries",
    "too_long": "must have {max_length} entries",
}
"""Our words for the kinds of pydantic errors; other kinds keep pydantic's sentence."""

COEFFICIENT = "must be a number, auto, or auto_X with X the initial value (auto_0.02)"
PATTERNS: Mapping[str, str] = {
    "device": "must be auto, cpu, cuda or cuda:0, cuda:1, ...",
    "aggregation": "must be min, mean, or subset_M with a number M of critics (subset_2)",
    "ent_coef": COEFFICIENT,
    "kl_coef": COEFFICIENT,
}
"""What a text field with a pattern accepts."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is complete and stands on one line."""


def find_nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name nearest to `name`, whatever its case, or None if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[nearest[0]] if nearest else None


def suggest(name: str, known: Collection[str]) -> str:
    """Return "; did you mean X?" for the known name nearest to `name`, or nothing."""
    nearest = find_nearest(name, known)
    return f"; did you mean {nearest}?" if nearest else ""


def describe(error: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors says about the value, without the place."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        return "is missing"
    if kind == "refused":
        return str(context["reason"])
    field = next((part for part in reversed(error["loc"]) if part in PATTERNS), None)
    if kind == "union_tag_invalid":
        context = {"expected_tags": " or ".join(_quoted(context["expected_tags"]))}
    if kind == "string_pattern_mismatch" and field:
        text = PATTERNS[field]
    else:
        text = TEXTS.get(kind, error["msg"]).format(**context).replace("'", "")
    return f"{text}, got {show(value)}{_hint(kind, value, context)}"


def show(value: object) -> str:
    """Return a value as a YAML author would write it, cut to a line."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(kind: str, value: object, context: Mapping[str, Any]) -> str:
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    if kind == "literal_error" and isinstance(value, str):
        return suggest(value, _quoted(context["expected"]))
    return ""


def _quoted(text: str) -> list[str]:
    return text.split("'")[1::2]
