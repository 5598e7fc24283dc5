"""What breaks a client between two OpenAPI documents: less may be sent, or less is promised of what comes."""

import math
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
LIMITS = {"maxLength": 1, "maximum": 1, "maxItems": 1, "minLength": -1, "minimum": -1, "minItems": -1}
HOLDS = {"number": {"number", "integer"}}


def broken(old: Schema, new: Schema) -> list[str]:
    """A line each, which begins with the operation's id; empty if every client of `old` works with `new`."""
    found: list[str] = []
    for path, item in old["paths"].items():
        for method, operation in item.items():
            name = operation["operationId"]
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                found.append(f"{name}: {method.upper()} {path} is gone")
            else:
                found += [f"{name}: {what}" for what in _operation(operation, now, Pair(old, new))]
    return sorted(set(found))


class Pair:
    """Two documents, whose references lead each to its own."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self.old, self.new = old, new
        self.seen: set[tuple[str, str, bool]] = set()

    def resolved(self, old: Schema, new: Schema, sent: bool) -> tuple[Schema, Schema] | None:
        """None where the two were compared before."""
        at = (old.get("$ref", ""), new.get("$ref", ""), sent)
        if all(at[:2]):
            if at in self.seen:
                return None
            self.seen.add(at)
        return _followed(old, self.old), _followed(new, self.new)


def _followed(schema: Schema, document: Schema) -> Schema:
    """With what `$ref` and `allOf` add to it; what holds under a condition is under `needs`."""
    parts = [*schema.get("allOf", ()), schema]
    if "$ref" in schema:
        place: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        parts.insert(0, place)
    if parts == [schema]:
        return schema
    whole: Schema = {}
    for part in parts:
        if "if" in part:
            whole["needs"] = [*whole.get("needs", ()), part]
            continue
        added = part if part is schema else _followed(part, document)
        whole |= {name: value for name, value in added.items() if name not in ("$ref", "allOf")}
    return whole


def _operation(old: Schema, new: Schema, pair: Pair) -> Iterator[str]:
    if new.get("security") and not old.get("security"):
        yield "needs a token now"
    if new["operationId"] != old["operationId"]:
        yield f"is called {new['operationId']} now"
    yield from _parameters(old.get("parameters", []), new.get("parameters", []), pair)
    yield from _body(old.get("requestBody"), new.get("requestBody"), pair)
    for status, response in old["responses"].items():
        if status in new["responses"]:
            yield from _response(status, response, new["responses"][status], pair)
        else:
            yield f"doesn't answer {status} any more"


def _response(status: str, old: Schema, new: Schema, pair: Pair) -> Iterator[str]:
    for name in old.get("headers", {}).keys() - new.get("headers", {}).keys():
        yield f"{status} has no header {name} any more"
    for kind, content in old.get("content", {}).items():
        now = new.get("content", {}).get(kind)
        if now is None:
            yield f"{status} isn't {kind} any more"
            continue
        of = "answer" if status < "300" else "error"
        yield from _schema(content.get("schema", {}), now.get("schema", {}), pair, of, sent=False)
        if kind == "text/event-stream":
            yield from _events(pair)


def _events(pair: Pair) -> Iterator[str]:
    """What a stream holds: no operation refers to it, for OpenAPI has no way to say so."""
    before, now = (document["components"]["schemas"] for document in (pair.old, pair.new))
    for name in (name for name in before if name.endswith("Event")):
        if name in now:
            yield from _schema(before[name], now[name], pair, name, sent=False)
        else:
            yield f"{name} is gone"


def _parameters(old: list[Schema], new: list[Schema], pair: Pair) -> Iterator[str]:
    before, now = ({(one["in"], one["name"]): one for one in some} for some in (old, new))
    for where, name in before.keys() - now.keys():
        yield f"{where} parameter {name} is gone"
    for at, parameter in now.items():
        if parameter.get("required") and not before.get(at, {}).get("required"):
            yield f"{at[0]} parameter {at[1]} is required now"
        if at in before:
            yield from _schema(before[at]["schema"], parameter["schema"], pair, at[1], sent=True)


def _body(old: Schema | None, new: Schema | None, pair: Pair) -> Iterator[str]:
    if new and new.get("required") and not (old and old.get("required")):
        yield "needs a body now"
    for kind, content in (old or {}).get("content", {}).items():
        now = (new or {}).get("content", {}).get(kind)
        if now is None:
            yield f"takes no {kind} any more"
        else:
            yield from _schema(content["schema"], now["schema"], pair, "body", sent=True)


def _schema(old: Schema, new: Schema, pair: Pair, where: str, *, sent: bool) -> Iterator[str]:
    """`sent`: by clients, so that it mustn't get narrower; else it comes from us, and mustn't get wider."""
    both = pair.resolved(old, new, sent)
    if both is None:
        return
    yield from _kinds(*both, pair, where, sent=sent)
    for before, now in _same_kinds(*both, pair):
        yield from _values(before, now, where, sent=sent)
        yield from _limits(before, now, where, sent=sent)
        yield from _properties(before, now, pair, where, sent=sent)
        if "items" in before and "items" in now:
            yield from _schema(before["items"], now["items"], pair, f"{where}[]", sent=sent)


def _kinds(old: Schema, new: Schema, pair: Pair, where: str, *, sent: bool) -> Iterator[str]:
    before, now = _types(old, pair.old), _types(new, pair.new)
    wider = now if sent else before  # or should be
    for kind in () if "anything" in wider else (before - now) if sent else (now - before):
        yield f"{where} can't be {kind} any more" if sent else f"{where} can be {kind} now"


def _types(schema: Schema, document: Schema) -> set[str]:
    ways = _ways(schema, document)
    if ways != [schema]:
        return set().union(*(_types(way, document) for way in ways))
    kinds = schema.get("type", "anything")
    return set().union(*(HOLDS.get(kind, {kind}) for kind in ([kinds] if isinstance(kinds, str) else kinds)))


def _ways(schema: Schema, document: Schema) -> list[Schema]:
    ways = schema.get("oneOf") or schema.get("anyOf")
    return [_followed(way, document) for way in ways] if ways else [schema]


def _same_kinds(old: Schema, new: Schema, pair: Pair) -> Iterator[tuple[Schema, Schema]]:
    """Each of what it may be, with what that is now: the object that may be null with the object, say."""
    for before in _ways(old, pair.old):
        kinds = _types(before, pair.old)
        for now in _ways(new, pair.new):
            if kinds & _types(now, pair.new) - {"null"}:
                yield before, now
                break


def _values(old: Schema, new: Schema, where: str, *, sent: bool) -> Iterator[str]:
    before, now = (set(schema.get("enum", [schema["const"]] if "const" in schema else ())) for schema in (old, new))
    if sent:
        for value in before - now if now else ():
            yield f"{where} can't be {value!r} any more"
        if now and not before:
            yield f"{where} takes certain values only now"
    elif before and not where.startswith("error"):  # of errors there may be new codes and reasons
        for value in (now or {"anything"}) - before:
            yield f"{where} can be {value!r} now"


def _limits(old: Schema, new: Schema, where: str, *, sent: bool) -> Iterator[str]:
    tight, loose = (new, old) if sent else (old, new)
    if tight.get("format", loose.get("format")) != loose.get("format"):
        yield f"{where} must be of the format {new['format']} now" if sent else f"{where} is no {old['format']} now"
    if not sent:
        return
    for name, sign in LIMITS.items():
        none = sign * math.inf
        if sign * new.get(name, none) < sign * old.get(name, none):
            yield f"{where} has the {name} {new[name]} now"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{where} must match another pattern now"
    if [need for need in new.get("needs", ()) if need not in old.get("needs", ())]:
        yield f"{where} must fulfil another condition now"


def _properties(old: Schema, new: Schema, pair: Pair, where: str, *, sent: bool) -> Iterator[str]:
    before, now = old.get("properties", {}), new.get("properties", {})
    for name in before.keys() - now.keys():
        yield f"{where}.{name} is gone"
    if sent and new.get("additionalProperties") is False is not old.get("additionalProperties"):
        yield f"{where} takes no other fields any more"
    required, required_now = set(old.get("required", ())), set(new.get("required", ()))
    for name in (required_now - required) if sent else (required - required_now) & now.keys():
        yield f"{where}.{name} is required now" if sent else f"{where}.{name} may be missing now"
    for name in sorted(before.keys() & now.keys()):
        yield from _schema(before[name], now[name], pair, f"{where}.{name}", sent=sent)
