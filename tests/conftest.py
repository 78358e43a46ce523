"""Options and fixtures of all tests."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from awaited import BOTH, Connect
from command_line import Ended, Run, run_client
from harness import ServerProcess, serving
from hypothesis import HealthCheck, settings

import zkv

settings.register_profile("short", deadline=None, print_blob=True)
settings.register_profile(
    "long",
    deadline=None,
    print_blob=True,
    max_examples=20_000,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run random tests for hours")
    parser.addoption("--seed", type=int, help="repeat a random test with the seed it printed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):  # so that no server is started to ignore them
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)
    settings.load_profile("long" if config.getoption("--long") else "short")
    if config.getoption("--long"):
        config.option.timeout = 0


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether random tests may take hours."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test; a failure shows it."""
    given: int | None = request.config.getoption("--seed")
    seed = random.randrange(2**32) if given is None else given
    print(f"--seed {seed}")
    return seed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server on an empty folder."""
    with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture(params=BOTH)
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client of each kind."""
    return BOTH[request.param]


@pytest.fixture
def unused() -> str:
    """An endpoint where nothing is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of a file."""
    with serving(tmp_path_factory.mktemp("shared") / "data") as running:
        yield running


@pytest.fixture
def store(shared_server: ServerProcess) -> Iterator[zkv.Client]:
    """The shared server's store, empty."""
    with zkv.Client(shared_server.endpoint) as client:
        client.clear("")
        yield client


@pytest.fixture
def run(shared_server: ServerProcess) -> Run:
    """Runs zkv-client on pipes, for the shared server unless another endpoint is given."""

    def run(
        *args: str | bytes, stdin: bytes = b"", endpoint: str = shared_server.endpoint
    ) -> Ended:
        return run_client(endpoint, *args, stdin=stdin)

    return run
