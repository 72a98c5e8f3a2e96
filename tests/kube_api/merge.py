"""Strategic merge patch, as far as nodes need it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

MERGE_KEYS = {"conditions": "type", "addresses": "type", "taints": "key"}
"""Lists of a node whose elements are merged by a key; other lists are replaced (patchStrategy in core/v1 types.go)."""


def strategic_merge(original: Any, patch: Any, field: str = "") -> Any:
    """Return `original` with `patch` merged in: null deletes a field, `$patch: delete` an element of a merged list."""
    if isinstance(original, dict) and isinstance(patch, dict):
        merged = {name: deepcopy(value) for name, value in original.items() if patch.get(name, 0) is not None}
        for name, value in patch.items():
            if value is not None:
                merged[name] = strategic_merge(original.get(name), value, name)
        return merged
    if isinstance(original, list) and isinstance(patch, list) and field in MERGE_KEYS:
        return _merge_list(original, patch, MERGE_KEYS[field])
    if isinstance(patch, dict):
        return {name: strategic_merge(None, value, name) for name, value in patch.items() if value is not None}
    return deepcopy(patch)


def _merge_list(original: list[Any], patch: list[Any], key: str) -> list[Any]:
    elements = {element[key]: element for element in deepcopy(original)}
    for element in patch:
        if element.get("$patch") == "delete":
            elements.pop(element[key], None)
        else:
            elements[element[key]] = strategic_merge(elements.get(element[key]), element)
    return list(elements.values())
