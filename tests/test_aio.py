"""What is special to zkv.aio.Client. That it is a client like the other is tested where the
other is: test_client, test_store, test_exactly_once.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import zmq
from harness import ServerProcess, raw_socket, serving, wait_until
from relay import Relay

import zkv
import zkv.aio

PUBLIC = [name for name in dir(zkv.Client) if not name.startswith("_")]


def test_both_clients_have_the_same_methods() -> None:
    """With the same arguments and the same help; but for the view as a dict."""
    assert {*PUBLIC} - {*dir(zkv.aio.Client)} == {"as_dict"}
    for name in PUBLIC:
        if name in ("as_dict", "close", "transaction"):
            continue
        one, other = getattr(zkv.Client, name), getattr(zkv.aio.Client, name)
        assert inspect.getdoc(one) == inspect.getdoc(other)
        signatures = [inspect.signature(method) for method in (one, other)]
        assert signatures[0].parameters == signatures[1].parameters
        assert inspect.iscoroutinefunction(other) or inspect.isasyncgenfunction(other)
    signature = inspect.signature(zkv.Client.get)
    assert str(signature) == "(self, /, key: 'str', default: 'Any' = RAISE) -> 'Any'"
    assert str(inspect.signature(zkv.Client.keys)).endswith("-> 'Iterator[str]'")
    assert str(inspect.signature(zkv.aio.Client.items)).endswith("-> 'AsyncIterator[Item]'")
    assert str(inspect.signature(zkv.Client.backup)).startswith("(self, /, folder:")


def test_many_tasks_share_a_client(server: ServerProcess) -> None:
    """More than one connection may have under way."""

    async def use(client: zkv.aio.Client, task: int) -> None:
        await client.put(f"{task}", task)
        await client.incr("all")
        assert await client.get(f"{task}") == task

    async def main() -> None:
        async with zkv.aio.Client(server.endpoint, timeout_s=60) as client:
            await asyncio.gather(*(use(client, task) for task in range(500)))
            assert await client.get("all") == 500

    asyncio.run(main())


@pytest.mark.parametrize("exactly_once", [True, False])
def test_a_cancelled_call_leaves_the_others_their_replies(
    server: ServerProcess, seed: int, exactly_once: bool
) -> None:
    """Hundreds are cancelled at random moments; each that is not gets what it asked for."""
    rng = random.Random(seed)
    cancelled = 0

    async def ask(client: zkv.aio.Client, n: int) -> None:
        choice = rng.randrange(4)
        if choice == 0:
            assert await client.get(f"k{n % 100}") == n % 100
        elif choice == 1:
            assert (await client.get_many([f"k{n % 100}", f"k{(n + 1) % 100}"])) == {
                f"k{n % 100}": n % 100, f"k{(n + 1) % 100}": (n + 1) % 100,
            }  # fmt: skip
        elif choice == 2:
            await client.put(f"own{n}", n)
            assert await client.get(f"own{n}") == n
        else:
            assert await anext(client.keys(f"k{n % 100}")) == f"k{n % 100}"

    async def main() -> None:
        nonlocal cancelled
        async with zkv.aio.Client(
            server.endpoint, timeout_s=60, resend_after_s=0.02, exactly_once=exactly_once
        ) as client:
            await client.put_many({f"k{n}": n for n in range(100)})
            for _ in range(40):
                tasks = [asyncio.create_task(ask(client, rng.randrange(1000))) for _ in range(40)]
                for task in rng.sample(tasks, 20):
                    asyncio.get_running_loop().call_later(rng.uniform(0, 0.004), task.cancel)
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(result, asyncio.CancelledError):
                        cancelled += 1
                    elif result is not None:
                        raise result
            counts = [await client.incr("after") for _ in range(20)]
            assert counts == list(range(1, 21))

    asyncio.run(main())
    assert cancelled > 20


def test_a_cancelled_write_is_done_once_or_not_at_all(server: ServerProcess, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        async with zkv.aio.Client(server.endpoint, timeout_s=60) as client:
            acknowledged = cancelled = 0
            for _ in range(300):
                task = asyncio.create_task(client.incr("n"))
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.002), task.cancel)
                with suppress(asyncio.CancelledError):
                    await task
                acknowledged += not task.cancelled()
                cancelled += task.cancelled()
            number = await client.get("n", 0)
            assert acknowledged <= number <= acknowledged + cancelled
            assert cancelled > 20

    asyncio.run(main())


def test_each_write_of_many_tasks_is_done_once(server: ServerProcess, seed: int) -> None:
    """With 30% of the replies lost, and some calls cancelled."""
    rng = random.Random(seed)

    async def main(relay: Relay) -> None:
        async with zkv.aio.Client(relay.endpoint, timeout_s=60, resend_after_s=0.02) as client:
            acknowledged = cancelled = 0

            async def write() -> None:
                nonlocal acknowledged, cancelled
                task = asyncio.create_task(client.incr("n"))
                if rng.random() < 0.1:
                    asyncio.get_running_loop().call_later(rng.uniform(0, 0.2), task.cancel)
                try:
                    await task
                    acknowledged += 1
                except asyncio.CancelledError:
                    cancelled += 1

            for _ in range(10):
                await asyncio.gather(*(write() for _ in range(40)))
            assert acknowledged <= await client.get("n") <= acknowledged + cancelled
            assert acknowledged > 300

    with Relay(server.endpoint, lost=0.3, seed=seed) as relay:
        asyncio.run(main(relay))
        assert relay.dropped > 50


def test_what_is_given_up_leaves_no_socket_open() -> None:
    """However often nobody answers."""

    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main(endpoint: str) -> None:
        async with zkv.aio.Client(endpoint, timeout_s=0.2, resend_after_s=0.05) as client:
            for _ in range(10):
                asked = (client.incr(f"{n}") for n in range(20))
                for result in await asyncio.gather(*asked, return_exceptions=True):
                    assert isinstance(result, zkv.Timeout)
            assert opened() < before + 40

    with raw_socket(zmq.DEALER, "inproc://nowhere") as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        before = opened()
        asyncio.run(main(f"tcp://127.0.0.1:{port}"))
        wait_until(lambda: opened() <= before)


def test_what_is_cancelled_leaves_no_socket_open_and_does_not_hold_up_the_end() -> None:
    """However silent the server."""

    async def main(endpoint: str) -> None:
        async with zkv.aio.Client(endpoint, timeout_s=0.3, resend_after_s=0.05) as client:
            for _ in range(10):
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.get("k"), 0.02)
                await asyncio.sleep(0.1)
            assert len(os.listdir("/proc/self/fd")) < before + 20
            with pytest.raises(zkv.Timeout):
                await client.get("k")

    with raw_socket(zmq.DEALER, "inproc://nowhere") as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(main(f"tcp://127.0.0.1:{port}"))


def test_what_is_cancelled_before_it_could_be_sent_takes_no_room(unused: str) -> None:
    async def main() -> None:
        async with zkv.aio.Client(unused, timeout_s=60, exactly_once=False) as client:
            for _ in range(20):
                tasks = [asyncio.create_task(client.put("k", n)) for n in range(50)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert len(os.listdir("/proc/self/fd")) < before + 20

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())


def test_what_is_cancelled_before_it_could_be_sent_is_not_sent(unused: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with zkv.aio.Client(unused, timeout_s=60, exactly_once=False) as client:
            task = asyncio.create_task(client.put("k", "cancelled"))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with serving(tmp_path / "data", "--listen", unused):
                for _ in range(20):  # one after another: what was sent before has long been done
                    assert await client.count() == 0

    asyncio.run(main())


def test_tens_of_thousands_of_calls_share_a_few_connections(
    server: ServerProcess, long: bool
) -> None:
    """All are done, each sent once."""
    count = 100_000 if long else 20_000

    async def main() -> None:
        async with zkv.aio.Client(server.endpoint, timeout_s=5) as client:
            await asyncio.gather(*(client.put(f"{n % 1000}", n) for n in range(count)))
            found = await asyncio.gather(*(client.get(f"{n % 1000}") for n in range(count)))
            assert {value % 1000 for value in found} == {*range(1000)}
            info = await client.info()
            asked = info["counters"]["requests"]
            assert (asked["put"], asked["get"]) == (count, count)
            assert info["connections"]["open"] <= 8
            assert info["sessions"] == asked["txn"] <= 8 * 128

    asyncio.run(main())


def test_a_call_that_waits_for_its_turn_is_not_on_the_clock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("zkv.aio.CONNECTIONS_MAX", 1)
    monkeypatch.setattr("zkv.aio.IN_FLIGHT_MAX", 1)

    async def main(endpoint: str) -> None:
        async with zkv.aio.Client(endpoint, timeout_s=0.4, resend_after_s=10) as client:
            started = [asyncio.create_task(client.ping()) for _ in range(5)]
            await asyncio.sleep(0.01)
            started[3].cancel()
            results = await asyncio.gather(*started, return_exceptions=True)
            kinds = [type(result) for result in results]
            assert kinds == [zkv.Timeout] * 3 + [asyncio.CancelledError, zkv.Timeout]

    with zmq.Context() as context, context.socket(zmq.ROUTER) as deaf:
        deaf.linger = 0
        asyncio.run(main(f"tcp://127.0.0.1:{deaf.bind_to_random_port('tcp://127.0.0.1')}"))


def test_calls_that_wait_for_their_turn_are_done_first_come_first_served(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.aio.CONNECTIONS_MAX", 1)
    monkeypatch.setattr("zkv.aio.IN_FLIGHT_MAX", 1)
    done = []

    async def call(client: zkv.aio.Client, n: int) -> None:
        await client.put("k", n)
        done.append(n)

    async def main() -> None:
        async with zkv.aio.Client(server.endpoint, timeout_s=60) as client:
            tasks = [asyncio.create_task(call(client, n)) for n in range(100)]
            await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            await asyncio.wait(tasks)
            assert done == [*range(0, 100, 2)]

    asyncio.run(main())


def test_a_cancelled_call_keeps_its_place_while_the_server_has_it() -> None:
    """Or those who cancel what a silent server does not answer open connections without end."""

    async def main(endpoint: str) -> None:
        async with zkv.aio.Client(endpoint, timeout_s=60, resend_after_s=30) as client:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                tasks = [asyncio.create_task(client.get("k")) for _ in range(1024)]
                await asyncio.sleep(0.1)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert len(os.listdir("/proc/self/fd")) < before + 30

    with zmq.Context() as context, context.socket(zmq.ROUTER) as deaf:
        deaf.linger = 0
        asyncio.run(main(f"tcp://127.0.0.1:{deaf.bind_to_random_port('tcp://127.0.0.1')}"))


def test_a_cancelled_call_gives_its_place_back_in_its_time() -> None:
    """To who has waited for it."""

    async def main(endpoint: str) -> None:
        async with zkv.aio.Client(endpoint, timeout_s=0.5) as client:
            for _ in range(3):
                tasks = [asyncio.create_task(client.get("k")) for _ in range(1024)]
                await asyncio.sleep(0.1)
                for task in tasks:
                    task.cancel()
                with pytest.raises(zkv.Timeout):
                    await client.get("k")

    with zmq.Context() as context, context.socket(zmq.ROUTER) as deaf:
        deaf.linger = 0
        asyncio.run(main(f"tcp://127.0.0.1:{deaf.bind_to_random_port('tcp://127.0.0.1')}"))


def test_a_loop_that_is_always_busy_makes_nothing_late(server: ServerProcess) -> None:
    """Not while it connects, nor while it opens a session, nor after."""

    async def be_busy() -> None:
        while True:
            time.sleep(0.5)
            await asyncio.sleep(0)

    async def main() -> None:
        async with zkv.aio.Client(server.endpoint, timeout_s=0.2, resend_after_s=0.1) as client:
            busy = asyncio.create_task(be_busy())
            await asyncio.gather(*(client.put(f"{n}", n) for n in range(10)))
            await client.put("k", 1)
            busy.cancel()
            asked = (await client.info())["counters"]["requests"]
            assert (asked["txn"], asked["put"]) == (10, 11)

    asyncio.run(main())


def test_a_reply_that_came_while_the_loop_was_busy_is_not_late(server: ServerProcess) -> None:
    async def main() -> None:
        async with zkv.aio.Client(server.endpoint, timeout_s=0.2, resend_after_s=0.1) as client:
            await client.put("k", 1)
            for _ in range(3):
                waiting = asyncio.create_task(client.get("k"))
                await asyncio.sleep(0)
                time.sleep(0.3)
                assert await waiting == 1
            assert (await client.info())["counters"]["requests"]["get"] == 3

    asyncio.run(main())


def test_cancelled_calls_cost_nothing_and_take_no_reply_of_others(
    server: ServerProcess, seed: int, long: bool
) -> None:
    """No session, and no connection. Ten thousand, at random moments; most are writes."""
    rng = random.Random(seed)
    cancelled = 0

    async def call(client: zkv.aio.Client, n: int) -> None:
        if n % 4 == 0:
            assert await client.get(f"k{n}") == n
        else:
            assert (await client.swap(f"own{n}", n)) in (n, None)

    async def main() -> None:
        nonlocal cancelled
        async with zkv.aio.Client(server.endpoint, timeout_s=60) as client:
            await client.put_many({f"k{n}": n for n in range(100)})
            for _ in range(1000 if long else 112):
                tasks = [asyncio.create_task(call(client, n)) for n in range(100)]
                for task in rng.sample(tasks, 90):
                    asyncio.get_running_loop().call_later(rng.uniform(0, 0.004), task.cancel)
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    cancelled += isinstance(result, asyncio.CancelledError)
                    assert result is None or isinstance(result, asyncio.CancelledError)
            info = await client.info()
            assert info["sessions"] <= 75
            assert info["connections"]["open"] <= 8

    asyncio.run(main())
    assert cancelled > 1000


DROPPED = """
import asyncio, os, sys, zkv.aio

async def use():
    await zkv.aio.Client(sys.argv[1]).put("k", 1)

async def main():
    await use()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await use()
    await asyncio.sleep(0.2)
    print(len(os.listdir("/proc/self/fd")) < files + 10)

asyncio.run(main())
"""


@pytest.mark.parametrize("action", ["always", "error"])
def test_a_client_that_is_dropped_says_so_and_leaves_nothing(
    server: ServerProcess, action: str
) -> None:
    """While its loop goes on, and also where a warning is an error."""
    command = [sys.executable, "-W", f"{action}::ResourceWarning", "-c", DROPPED, server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "True\n")
    said = f"ResourceWarning: <zkv.aio.Client of {server.endpoint}> was not closed\n"
    assert done.stderr.count(said) == 51
    assert "Unclosed socket" not in done.stderr


NO_FILES = """
import asyncio, resource, sys, zkv.aio
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

async def main():
    clients = []
    try:
        for _ in range(100):
            clients.append(zkv.aio.Client(sys.argv[1], timeout_s=0.5))
            await clients[-1].ping()
    except zkv.CannotConnect as error:
        print(error)
    for client in clients:
        await client.close()
    await asyncio.sleep(0.5)
    async with zkv.aio.Client(sys.argv[1]) as client:
        await client.ping()

asyncio.run(main())
"""


def test_a_client_without_files_for_it_cannot_connect(server: ServerProcess) -> None:
    """And the process goes on."""
    command = [sys.executable, "-c", NO_FILES, server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cannot make a socket: Too many open files; nothing was sent\n"


def test_a_shortage_of_files_that_comes_later_does_not_say_that_nothing_was_sent(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that passes is not seen."""
    made = 0

    def connect(endpoint: str) -> zmq.Socket[bytes]:
        nonlocal made
        made += 1
        if made in short:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return zkv.dealer.connect(endpoint)

    monkeypatch.setattr("zkv.aio.connect", connect)
    short: range | tuple[()] = ()

    async def main(endpoint: str) -> None:
        async with zkv.aio.Client(endpoint, timeout_s=0.5, resend_after_s=0.1) as client:
            with pytest.raises(zkv.Timeout, match="outcome unknown"):
                await client.put("k", 1)

    with zmq.Context() as context, context.socket(zmq.ROUTER) as deaf:
        deaf.linger = 0
        short = range(3, 100)
        asyncio.run(main(f"tcp://127.0.0.1:{deaf.bind_to_random_port('tcp://127.0.0.1')}"))
    assert made > 3

    async def later() -> None:
        async with zkv.aio.Client(server.endpoint) as client:
            await client.put("k", 1)

    made, short = 0, range(2, 4)
    asyncio.run(later())
    assert made == 4


def test_a_client_is_for_one_event_loop(server: ServerProcess) -> None:
    """And says so; it can be closed when that loop has ended."""
    client = zkv.aio.Client(server.endpoint)
    with asyncio.Runner() as runner:
        runner.run(client.put("k", 1))
        with pytest.raises(zkv.BadRequest, match="another event loop"):
            asyncio.run(client.get("k"))
        with pytest.raises(zkv.BadRequest, match="another event loop"):
            asyncio.run(client.close())
        assert runner.run(client.get("k")) == 1
    with pytest.raises(zkv.BadRequest, match="another event loop"):
        asyncio.run(client.get("k"))
    asyncio.run(client.close())


def test_an_exception_inside_a_block_sends_nothing(server: ServerProcess) -> None:
    async def main() -> None:
        async with zkv.aio.Client(server.endpoint) as client:
            block = client.transaction()
            block.put("k", 1)
            with pytest.raises(ZeroDivisionError):
                async with block:
                    raise ZeroDivisionError
            assert await client.count() == 0
            with pytest.raises(TypeError), client.transaction():  # type: ignore[attr-defined]
                pass

    asyncio.run(main())


def test_a_backup_that_is_cancelled_ends(server: ServerProcess, tmp_path: Path) -> None:
    """So that the program can."""

    async def main() -> None:
        async with zkv.aio.Client(server.endpoint) as client:
            await client.put("k", 1)
            task = asyncio.create_task(client.backup(tmp_path / "copy"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.get("k") == 1

    asyncio.run(main())


FORK = """
import asyncio, os, sys, zkv.aio

async def child(client):
    await client.put("child", await client.get("parent") + 1)
    await client.close()

async def parent(client):
    await client.put("parent", 1)
    if not (pid := os.fork()):
        try:
            asyncio.run(child(client))
            os._exit(0)
        except BaseException:
            import traceback; traceback.print_exc()
        finally:
            os._exit(1)
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
    assert await client.get("child") == 2
    assert await client.incr("parent") == 2
    await client.close()

asyncio.run(parent(zkv.aio.Client(sys.argv[1])))
"""


def test_a_forked_child_goes_on_using_it(server: ServerProcess) -> None:
    """In a loop of its own, while the parent goes on in its."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pages_of_a_listing_are_fetched_as_they_are_needed(server: ServerProcess) -> None:
    async def main() -> None:
        async with zkv.aio.Client(server.endpoint) as client:
            for start in range(0, 3000, 1000):
                await client.put_many({f"{n:04}": n for n in range(start, start + 1000)})
            seen = []
            async for key, *_ in client.items():
                seen.append(key)
                if len(seen) == 1:
                    assert await client.clear("2") == 1000
            assert len(seen) == 2000
            assert all(one < other for one, other in pairwise(seen))

    asyncio.run(main())
