"""A store whose methods wait, for whatever carries its requests: the plans, each run to its
end. A subclass says how a request travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from zkv import backup, plans
from zkv.block import READS, Block, Fields, Plan
from zkv.dict_view import DictView

P = ParamSpec("P")
T = TypeVar("T")


def blocking(plan: Callable[P, Plan[T]]) -> Callable[Concatenate[Store, P], T]:
    """The method that runs the plan."""

    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return store._run(plan(*args, **kwargs))

    plans.method_of(plan, method)
    return method


def iterating(
    pages: Callable[P, Iterator[Plan[list[T]]]],
) -> Callable[Concatenate[Store, P], Iterator[T]]:
    """The method that runs one plan after another, when it has no more items of the last."""

    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        for page in pages(*args, **kwargs):
            yield from store._run(page)

    plans.method_of(pages, method, "Iterator[{}]")
    return method


def reading(job: Callable[Concatenate[backup.Read, P], T]) -> Callable[Concatenate[Store, P], T]:
    """The method that does the job, with requests that only read."""

    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def read(op: str, fields: Fields) -> Fields:
            return store._request(op, fields, writes=READS)

        return job(read, *args, **kwargs)

    plans.method_of(job, method)
    return method


class Store:
    """Keys are str of 1..1024 bytes; values are what msgpack carries: None, bool, int, float,
    str, bytes, list, dict, msgpack.Timestamp and msgpack.ExtType. A tuple comes back as a list.

    A write takes conditions on its key, which must all hold or it raises Conflict and
    changes nothing: `if_version` (0: the key must not exist), `if_exists`, `if_value`
    (1, 1.0 and True differ). Every method may raise `zkv.Error`.
    """

    def _request(self, op: str, fields: Fields, *, writes: bool) -> Fields:
        """Carries out a request; returns the reply's fields or raises its error.

        One that `writes` must take effect once, however often it has to be sent.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of everything; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    ping = blocking(plans.ping)
    info = blocking(plans.info)
    get = blocking(plans.get)
    item = blocking(plans.item)
    put = blocking(plans.put)
    create = blocking(plans.create)
    replace = blocking(plans.replace)
    swap = blocking(plans.swap)
    delete = blocking(plans.delete)
    pop = blocking(plans.pop)
    incr = blocking(plans.incr)
    expire = blocking(plans.expire)
    count = blocking(plans.count)
    clear = blocking(plans.clear)
    keys = iterating(plans.keys)
    items = iterating(plans.items)
    page = blocking(plans.page)
    get_many = blocking(plans.get_many)
    put_many = blocking(plans.put_many)
    delete_many = blocking(plans.delete_many)
    compact = blocking(plans.compact)
    backup = reading(backup.backup)

    def transaction(self) -> Block:
        """A block whose requests are done all together, or not at all: see `Block`."""
        return Block(self._run)

    def as_dict(self, prefix: str = "") -> DictView:
        """The keys that begin with the prefix as a dict, which leaves it out: see `DictView`."""
        return DictView(self._run, prefix)

    def _run(self, plan: Plan[T]) -> T:
        try:
            op, fields, writes = next(plan)
            while True:
                try:
                    reply = self._request(op, fields, writes=writes)
                except BaseException as error:
                    op, fields, writes = plan.throw(error)
                else:
                    op, fields, writes = plan.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result


__all__ = ["Store"]
