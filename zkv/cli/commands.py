"""The commands on keys and on the server: what each does with a store and its arguments.

`arguments` has their names.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, BinaryIO, Final

from zkv.cli import json_text, output
from zkv.errors import BadRequest, Error
from zkv.store import Store
from zkv.values import to_json

PAGE_ITEMS: Final = 1000
Arguments = argparse.Namespace


def get(store: Store, args: Arguments) -> None:
    item = store.item(args.key)
    if args.form:
        ttl = {} if item.ttl is None else {"ttl": round(item.ttl, 3)}
        shown = {"key": item.key, "value": to_json(item.value), "version": item.version}
        output.json_line(shown | ttl)
    else:
        output.value(item.value)


def put(store: Store, args: Arguments) -> None:
    version = store.put(args.key, _value(args), ttl=args.ttl, if_version=args.if_version)
    output.one({"version": version}, args.form, "")


def delete(store: Store, args: Arguments) -> None:
    version = store.delete(args.key, if_version=args.if_version)
    output.one({"version": version}, args.form, "")


def incr(store: Store, args: Arguments) -> None:
    number = store.incr(args.key, args.by, initial=args.initial)
    output.one(to_json(number), args.form, json_text.compact(number))


def expire(store: Store, args: Arguments) -> None:
    version = store.expire(args.key, args.ttl, if_version=args.if_version)
    output.one({"version": version}, args.form, "")


def list_(store: Store, args: Arguments) -> None:
    output.each(islice(_items(store, args), args.limit), args.form, _item_text)


def count(store: Store, args: Arguments) -> None:
    keys = store.count(args.prefix)
    output.one({"count": keys}, args.form, str(keys))


def clear(store: Store, args: Arguments) -> None:
    if not args.yes and sys.stdin.isatty():
        keys = output.keys_text(store.count(args.prefix))
        print(
            f"Remove {keys} with the prefix {json_text.compact(args.prefix)}? [y/N] ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Error("nothing was removed")
    removed = store.clear(args.prefix)
    output.one({"count": removed}, args.form, str(removed))


def ping(store: Store, args: Arguments) -> None:
    store.ping()  # the first one also waits for the connection
    started = time.perf_counter()
    store.ping()
    milliseconds = round((time.perf_counter() - started) * 1000, 3)
    output.one({"ms": milliseconds}, args.form, f"{milliseconds:.3f} ms")


def info(store: Store, args: Arguments) -> None:
    facts = store.info()
    if args.form:
        output.json_line(to_json(facts))
        return
    for name, fact in _flat(facts):
        output.line(f"{name}: {fact if type(fact) is str else json_text.compact(to_json(fact))}")


def compact(store: Store, _: Arguments) -> None:
    store.compact()


def standard_input(args: Arguments) -> BinaryIO:
    """What a command may read. Raises BadRequest where the commands themselves come from it."""
    if args.stdin is None:
        raise BadRequest("standard input holds the commands here; a value or a file is needed")
    stdin: BinaryIO = args.stdin
    return stdin


def _value(args: Arguments) -> Any:
    """The value to put, from the command line or from stdin."""
    given = standard_input(args).read() if args.value == "-" else args.value.encode()
    if args.bytes:
        return given
    try:
        text = given.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"standard input is not UTF-8: {error}; --bytes stores it as it is"
        ) from None
    if args.text:
        return text
    try:
        return json_text.parse(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[:1] in ("{", "["):  # --text says that it is meant
            print(f"zkv-client: taken as text, since it is not JSON: {error}", file=sys.stderr)
        return text
    except ValueError as error:
        raise BadRequest(f"VALUE is JSON that cannot be stored: {error}") from None


def _items(store: Store, args: Arguments) -> Iterator[dict[str, Any]]:
    """All that `list` may print."""
    limit = min(args.limit or PAGE_ITEMS, PAGE_ITEMS)
    after, more = args.after, True
    while more:
        page = store.page(args.prefix, after=after, limit=limit, values=args.values)
        for key, version, *values in page.items:
            shown = {"value": to_json(values[0])} if values else {}
            yield {"key": key, "version": version, **shown}
        more = page.more
        after = page.items[-1][0] if more else ""


def _item_text(item: Mapping[str, Any]) -> str:
    key = output.key_text(item["key"])
    if "value" not in item:
        return key
    return f"{key}\t{output.json_shown(json_text.compact(item['value']))}"


def _flat(facts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The facts of a map, those of the maps in it by names with a dot."""
    for name, fact in facts.items():
        if type(fact) is dict:
            yield from _flat(fact, f"{within}{name}.")
        elif name == "started":
            yield within + name, datetime.fromtimestamp(fact, UTC).isoformat(timespec="seconds")
        else:
            yield within + name, fact
