"""The text of form fields as the values that it stands for, by the JSON Schema of what will read them.

Names come as HTTP clients write them: `name`, `name[]` or PHP's `name[0]` for a list, `name[key]` for an object's
member, `name[][key]` for those of a list of objects. Lists and objects may also be one JSON text, and a list of words
that are told beforehand one text with commas.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hansard.errors import RequestError

Schema = dict[str, Any]

_NAME = re.compile(r"([^\[\]]+)(\[\])?(?:\[([^\[\]]+)\])?")
_PLACE = re.compile(r"\d{1,4}", re.ASCII)  # of an item in a list
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def inlined(schema: Schema) -> Schema:
    """A JSON Schema with each `$ref` to its own `$defs` replaced by what it stands for; not for recursive ones."""
    definitions = schema.get("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rsplit("/", 1)[-1]])
        return {key: resolved(value) for key, value in part.items() if key != "$defs"}

    whole: Schema = resolved(schema)
    return whole


def typed(fields: Mapping[str, Sequence[str]], properties: Mapping[str, Schema]) -> dict[str, object]:
    """A form's fields as values; `properties` are those of an inlined schema.

    Empty text says nothing and is left out. Text that is no value of its type stays text, and a name that has no
    property keeps it, for whoever validates them to refuse. Raises RequestError for a field given twice.
    """
    plain: dict[str, list[str]] = defaultdict(list)
    members: dict[str, dict[str, list[str]]] = defaultdict(dict)
    items: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for key, texts in fields.items():
        match = _NAME.fullmatch(key)
        name, member = (match[1], match[3]) if match and match[1] in properties else (key, None)
        if member and _PLACE.fullmatch(member) and "array" in _kinds(properties[name]):
            items[name].setdefault(int(member), []).extend(texts)
        elif member:
            members[name].setdefault(member, []).extend(texts)
        else:
            plain[name] += [text for text in texts if text]
    for name, places in items.items():
        plain[name] += [text for _, texts in sorted(places.items()) for text in texts if text]
    values: dict[str, object] = {}
    for name in dict.fromkeys([*plain, *members]):
        kinds = _kinds(properties.get(name, {}))
        if name in members:
            if plain.get(name):
                raise RequestError(f"{name} is given twice, whole and by its parts; give it once")
            values[name] = _from_members(name, members[name], kinds)
        elif plain[name]:
            values[name] = _from_texts(name, plain[name], kinds)
    return values


def _kinds(schema: Schema) -> dict[str, Schema]:
    """The types that a schema allows, each with its schema."""
    found: dict[str, Schema] = {}
    for option in schema.get("anyOf", [schema]):
        found[option.get("type", "string")] = option
    return found


def _from_texts(name: str, texts: list[str], kinds: dict[str, Schema]) -> object:
    if "array" in kinds:
        if len(texts) == 1 and isinstance(whole := _json(texts[0]), list):
            return whole
        schema = kinds["array"].get("items", {})
        if "enum" in schema or "const" in schema:  # words of which none has a comma
            texts = [word.strip() for text in texts for word in text.split(",") if word.strip()]
        return [_value(text, _kinds(schema)) for text in texts]
    if len(texts) > 1:
        raise RequestError(f"{name[:60]} is given {len(texts)} times; give it once")
    return _value(texts[0], kinds)


def _from_members(name: str, members: dict[str, list[str]], kinds: dict[str, Schema]) -> object:
    """An object, or a list of them: the first values of all members make the first object, and so on."""
    shape = kinds.get("object") or _kinds(kinds.get("array", {}).get("items", {})).get("object", {})
    counts = {len(texts) for texts in members.values()}
    if len(counts) > 1 or ("object" in kinds and counts != {1}):
        raise RequestError(f"{name}: the parts do not say which belongs to which; send it as one JSON text")
    rows = [dict(zip(members, texts, strict=True)) for texts in zip(*members.values(), strict=True)]
    parts = shape.get("properties", {})
    objects = [{key: _value(text, _kinds(parts.get(key, {}))) for key, text in row.items()} for row in rows]
    return objects[0] if "object" in kinds else objects


def _value(text: str, kinds: dict[str, Schema]) -> object:
    """One text as the value that it stands for; as it is where it stands for none."""
    if "boolean" in kinds:
        return _TRUTH.get(text.strip().lower(), text)
    try:
        if "integer" in kinds:
            return int(text)
        if "number" in kinds:
            return float(text)
    except ValueError:
        return text
    if "object" in kinds and text.lstrip().startswith("{"):
        return _json(text)
    return text


def _json(text: str) -> object:
    """JSON as a value; text that is none as it is."""
    try:
        value: object = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text that can be sent
    except (ValueError, RecursionError):
        return text
    return value
