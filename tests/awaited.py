"""zkv.aio.Client with methods that wait, so that it can pass the tests of zkv.Client.

All run in one event loop, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import cache
from typing import Any, cast

import zkv
import zkv.aio

Connect = Callable[..., zkv.Client]
"""Makes a client; its arguments are those of zkv.Client."""


def connect_awaited(*args: Any, **settings: Any) -> zkv.Client:
    """A client for asyncio, in disguise."""
    return cast(zkv.Client, Awaited(zkv.aio.Client(*args, **settings)))


BOTH: dict[str, Connect] = {"sync": zkv.Client, "aio": connect_awaited}
"""Every kind of client."""


class Awaited:
    """The client's methods, run in the loop. What is set on it is set on the client."""

    def __init__(self, client: zkv.aio.Client) -> None:
        self.__dict__["client"] = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        if inspect.iscoroutinefunction(found):
            return lambda *args, **kwargs: run(found(*args, **kwargs))
        if inspect.isasyncgenfunction(found):
            return lambda *args, **kwargs: each(found(*args, **kwargs))
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.client, name, value)

    def transaction(self) -> Block:
        return Block(self.client)

    def __enter__(self) -> Awaited:
        run(self.client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        run(self.client.__aexit__(*error))


class Block(zkv.aio.Block):
    def __enter__(self) -> Block:
        run(self.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        run(self.__aexit__(*error))


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


def each(found: AsyncIterator[Any]) -> Iterator[Any]:
    end = object()

    async def next_or_end() -> Any:
        return await anext(found, end)

    while (item := run(next_or_end())) is not end:
        yield item


def _loop() -> asyncio.AbstractEventLoop:
    with _one_at_a_time:
        return _the_loop()


_one_at_a_time = threading.Lock()  # `cache` would let two threads make a loop each


@cache
def _the_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
