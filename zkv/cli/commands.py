"""The commands: what each does with a store and its arguments. `arguments` has their names."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from zkv.cli import json_text, output, transfer
from zkv.errors import BadRequest, Error
from zkv.store import Store
from zkv.values import to_json

PAGE_ITEMS: Final = 1000
Arguments = argparse.Namespace


def get(store: Store, args: Arguments) -> None:
    output.value(store.get(args.key), as_json=args.json)


def put(store: Store, args: Arguments) -> None:
    version = store.put(args.key, _value(args), ttl=args.ttl, if_version=args.if_version)
    if args.json:
        output.json_line({"version": version})


def delete(store: Store, args: Arguments) -> None:
    version = store.delete(args.key, if_version=args.if_version)
    if args.json:
        output.json_line({"version": version})


def incr(store: Store, args: Arguments) -> None:
    output.value(store.incr(args.key, args.by, initial=args.initial), as_json=args.json)


def list_(store: Store, args: Arguments) -> None:
    for key, version, *values in islice(_pages(store, args), args.limit):
        if args.json:
            shown = {"value": to_json(values[0])} if values else {}
            output.json_line({"key": key, "version": version, **shown})
        else:
            columns = [output.key_text(key), *map(json_text.compact, map(to_json, values))]
            output.line("\t".join(columns))


def count(store: Store, args: Arguments) -> None:
    _show_count(store.count(args.prefix), args)


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
    _show_count(store.clear(args.prefix), args)


def ping(store: Store, args: Arguments) -> None:
    store.ping()  # the first one also waits for the connection
    started = time.perf_counter()
    store.ping()
    milliseconds = round((time.perf_counter() - started) * 1000, 3)
    if args.json:
        output.json_line({"ms": milliseconds})
    else:
        output.line(f"{milliseconds:.3f} ms")


def info(store: Store, args: Arguments) -> None:
    facts = store.info()
    if args.json:
        output.json_line(to_json(facts))
        return
    for name, fact in _flat(facts):
        output.line(f"{name}: {fact if type(fact) is str else json_text.compact(to_json(fact))}")


def load(store: Store, args: Arguments) -> None:
    transfer.load(store, args.file)


def dump(store: Store, args: Arguments) -> None:
    transfer.dump(store, args.file, args.prefix)


def compact(store: Store, _: Arguments) -> None:
    store.compact()


def backup(store: Store, args: Arguments) -> None:
    revision = store.backup(args.folder)
    if args.json:
        output.json_line({"revision": revision})
    else:
        output.line(f"{args.folder}: revision {revision}")


def _value(args: Arguments) -> Any:
    """The value to put, from the command line or from stdin."""
    text = args.value
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"standard input is not UTF-8: {error}") from None
    if args.text:
        return text
    try:
        return json_text.parse(text)
    except json.JSONDecodeError:
        return text
    except ValueError as error:
        raise BadRequest(f"VALUE is JSON that cannot be stored: {error}") from None


def _pages(store: Store, args: Arguments) -> Iterator[tuple[Any, ...]]:
    """(key, version), and the value if asked for, of all that `list` may print."""
    limit = min(args.limit or PAGE_ITEMS, PAGE_ITEMS)
    after, more = args.after, True
    while more:
        page = store.page(args.prefix, after=after, limit=limit, values=args.values)
        yield from page.items
        more = page.more
        after = page.items[-1][0] if more else ""


def _show_count(keys: int, args: Arguments) -> None:
    if args.json:
        output.json_line({"count": keys})
    else:
        output.line(str(keys))


def _flat(facts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The facts of a map, those of the maps in it by names with a dot."""
    for name, fact in facts.items():
        if type(fact) is dict:
            yield from _flat(fact, f"{within}{name}.")
        elif name == "started":
            yield within + name, datetime.fromtimestamp(fact, UTC).isoformat(timespec="seconds")
        else:
            yield within + name, fact
