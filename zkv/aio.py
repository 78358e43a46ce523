"""A store behind a ZeroMQ endpoint, with methods to be awaited.

    async with zkv.aio.Client() as store:
        await store.put("user:1", {"name": "Ada"})

The methods and the steps of a request are those of `zkv.Client`; what differs is the way.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from zkv import backup, plans
from zkv.block import READS, Fields, Plan, Txn
from zkv.dealer import IN_FLIGHT_MAX, Dealer, connect, expect_files
from zkv.endpoint import find, no_socket, unreachable
from zkv.errors import BadRequest, CannotConnect, Error
from zkv.exchange import (
    CONNECT_AGAIN_S,
    Nothing,
    Session,
    Steps,
    ends_session,
    exchange,
    give_up_replies,
)
from zkv.places import Places

CONNECTIONS_MAX: Final = 8
"""How many a client opens at most; more calls than they may have under way wait for their turn."""

P = ParamSpec("P")
T = TypeVar("T")


def awaiting(
    plan: Callable[P, Plan[T]],
) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, T]]:
    """The method that runs the plan when it is awaited."""

    async def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client._run(plan(*args, **kwargs))

    plans.method_of(plan, method)
    return method


def iterating(
    pages: Callable[P, Iterator[Plan[list[T]]]],
) -> Callable[Concatenate[Client, P], AsyncIterator[T]]:
    """The method that runs one plan after another, when it has no more items of the last."""

    async def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        for page in pages(*args, **kwargs):
            for item in await client._run(page):
                yield item

    plans.method_of(pages, method, "AsyncIterator[{}]")
    return method


def reading(
    job: Callable[Concatenate[backup.Read, P], T],
) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, T]]:
    """The method that has a thread do the job, with requests that only read."""

    async def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        cancelled = False

        def read(op: str, fields: Fields) -> Fields:
            if cancelled:
                raise BadRequest("nobody waits for this any more")
            request = client._request(op, fields, writes=READS)
            return asyncio.run_coroutine_threadsafe(request, loop).result()

        try:
            return await asyncio.to_thread(job, read, *args, **kwargs)
        except asyncio.CancelledError:
            cancelled = True
            raise

    plans.method_of(job, method)
    return method


class Block(Txn):
    """What `zkv.Block` is, for `async with client.transaction() as block`."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self._client._run(self.commit())


class Client:
    """What `zkv.Client` is, for asyncio: the same arguments, methods and promises.

    Any number of tasks of one event loop may share one client, and it is for that loop only:
    in another it raises BadRequest. A fork may go on using it, in a loop of its own.

    Up to 1,024 calls are under way at a time; others wait for their turn, first come, first
    served, and the `timeout_s` of a call count from then on. (`asyncio.timeout` bounds all of it.)

    A call may be cancelled at any moment. What it asked for may then be done or not; other
    calls never get its reply.
    """

    _looking: asyncio.Task[str] | None

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout_s: float | None = None,
        resend_after_s: float | None = None,
        exactly_once: bool = True,
    ) -> None:
        found = find(endpoint, timeout_s, resend_after_s)
        self.endpoint, self.timeout_s, self.resend_after_s = found
        self.exactly_once = exactly_once
        self.revision_seen = 0
        self._closed = False
        self._start()
        try:
            connect(self.endpoint).close()  # a bad endpoint fails now
        except OSError as error:
            raise CannotConnect(no_socket(error)) from None

    def __repr__(self) -> str:
        return f"<zkv.aio.Client of {self.endpoint}>"

    async def close(self) -> None:
        """Closes the connections; a call that another task has under way closes its own."""
        if self._loop is None or not self._loop.is_closed():
            self._bind()
        if not self._closed and self._dealers:
            with suppress(Error):
                for steps in give_up_replies(self, self._sessions):
                    await self._carry(steps)
        self._closed = True
        self._end()

    def __del__(self) -> None:
        if self.__dict__.get("_dealers") and self._pid == os.getpid():
            if self._loop is None or self._loop.is_closed():
                _close_all(self._dealers)
            else:  # this may be the thread of another one
                self._loop.call_soon_threadsafe(_close_all, self._dealers)
            # Last, since a warning may be an error.
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    ping = awaiting(plans.ping)
    info = awaiting(plans.info)
    get = awaiting(plans.get)
    item = awaiting(plans.item)
    put = awaiting(plans.put)
    create = awaiting(plans.create)
    replace = awaiting(plans.replace)
    swap = awaiting(plans.swap)
    delete = awaiting(plans.delete)
    pop = awaiting(plans.pop)
    incr = awaiting(plans.incr)
    expire = awaiting(plans.expire)
    count = awaiting(plans.count)
    clear = awaiting(plans.clear)
    keys = iterating(plans.keys)
    items = iterating(plans.items)
    page = awaiting(plans.page)
    get_many = awaiting(plans.get_many)
    put_many = awaiting(plans.put_many)
    delete_many = awaiting(plans.delete_many)
    compact = awaiting(plans.compact)
    backup = reading(backup.backup)

    def transaction(self) -> Block:
        """A block whose requests are done all together, or not at all: see `zkv.Block`."""
        return Block(self)

    async def _run(self, plan: Plan[T]) -> T:
        try:
            op, fields, writes = next(plan)
            while True:
                try:
                    reply = await self._request(op, fields, writes=writes)
                except BaseException as error:
                    op, fields, writes = plan.throw(error)
                else:
                    op, fields, writes = plan.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        self._bind()
        if self._closed:
            raise BadRequest("the client is closed")
        self._calls += 1
        places, session = self._places, None
        has_place = places.take()
        try:
            if not has_place:
                await places.wait()
                has_place = True
                if self._closed:
                    raise BadRequest("the client is closed")
            if writes and self.exactly_once:
                session = self._sessions.pop() if self._sessions else Session()
            return await self._carry(exchange(self, session, op, fields, writes=writes))
        except CannotConnect:
            raise CannotConnect(await self._unreachable()) from None
        except Error as error:
            if ends_session(error):
                session = None
            raise
        finally:
            if session is not None:
                self._sessions.append(session)
            if has_place:
                places.give_back()
            self._calls -= 1
            if self._closed:
                self._end()

    async def _unreachable(self) -> str:
        """Why the server cannot be reached; one look is for all who ask meanwhile."""
        try:
            expect_files()
        except OSError as error:
            return no_socket(error)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(unreachable, self.endpoint))
        return await asyncio.shield(self._looking)

    async def _carry(self, steps: Steps) -> Fields:
        try:
            body, wait_s = next(steps)
            while True:
                try:
                    dealer = self._dealer()
                except OSError:  # a shortage of files, which may pass
                    await asyncio.sleep(min(CONNECT_AGAIN_S, wait_s))
                    body, wait_s = steps.send(Nothing.SENT)
                else:
                    body, wait_s = steps.send(await dealer.ask(body, wait_s))
        except StopIteration as end:
            reply: Fields = end.value
            return reply

    def _start(self) -> None:
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dealers: list[Dealer] = []
        self._sessions: list[Session] = []
        self._places = Places(CONNECTIONS_MAX * IN_FLIGHT_MAX)
        self._looking = None
        self._calls = 0

    def _bind(self) -> asyncio.AbstractEventLoop:
        """The event loop, which is the client's own; raises BadRequest in another one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._pid != os.getpid():  # forked: sockets and loop are the parent's
                self._start()
            if self._loop is not None:
                raise BadRequest("the client belongs to another event loop; make one for each")
            self._loop = loop
        return loop

    def _dealer(self) -> Dealer:
        """A connection with room for a request; one that has fallen silent gets no more."""
        for dealer in self._dealers:
            if dealer.has_room:
                return dealer
        self._dealers = [dealer for dealer in self._dealers if not dealer.silent]
        dealer = Dealer(connect(self.endpoint), self._bind(), self.endpoint, self._places)
        self._dealers.append(dealer)
        return dealer

    def _end(self) -> None:
        if self._calls == 0:
            _close_all(self._dealers)


def _close_all(dealers: list[Dealer]) -> None:
    while dealers:
        dealers.pop().close()
