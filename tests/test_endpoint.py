"""What a user may write for where a server is."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from awaited import Connect
from harness import serving

import zkv
from zkv.endpoint import Endpoint, find, is_private, parse

URLS = {
    "zkv://localhost": Endpoint("tcp://localhost:5757"),
    "zkv://localhost/": Endpoint("tcp://localhost:5757"),
    "zkv://10.0.0.1:70": Endpoint("tcp://10.0.0.1:70"),
    "zkv://[::1]": Endpoint("tcp://[::1]:5757"),
    "zkv://[fe80::1]:70?timeout=2": Endpoint("tcp://[fe80::1]:70", 2.0),
    "zkv://h?timeout=0.5&resend_after=0.1": Endpoint("tcp://h:5757", 0.5, 0.1),
    "zkv://h?resend_after=3": Endpoint("tcp://h:5757", 5.0, 3.0),
    "tcp://127.0.0.1:65535": Endpoint("tcp://127.0.0.1:65535"),
    "tcp://[::1]:1": Endpoint("tcp://[::1]:1"),
    "tcp://[fe80::1%eth0]:1": Endpoint("tcp://[fe80::1%eth0]:1"),
    "ipc:///run/zkv\udcff": Endpoint("ipc:///run/zkv\udcff"),
    "ipc:///run/zkv": Endpoint("ipc:///run/zkv"),
}

PRIVATE = {"tcp://127.0.0.1:5757", "tcp://127.1.2.3:1", "tcp://[::1]:5757", "ipc:///run/zkv"}
PUBLIC = {"tcp://0.0.0.0:5757", "tcp://[::]:5757", "tcp://192.0.2.1:1", "tcp://[fe80::1%eth0]:1"}

WRONG = {
    "zkv://": ("host", "no host"),
    "zkv://:5757": ("host", "no host"),
    "zkv://[::1": ("host", "IPv6"),
    "zkv://*": ("host", "no host"),
    "zkv://a b": ("host", "no host"),
    "zkv://h:0": ("port", "1 to 65535"),
    "zkv://h:65536": ("port", "65535"),
    "zkv://h:x": ("port", "x"),
    "zkv://h/path": ("path", "only a host"),
    "zkv://me@h": ("path", "only a host"),
    "zkv://h#f": ("path", "only a host"),
    "zkv://h?tiemout=2": ("tiemout", "unknown field 'tiemout'"),
    "zkv://h?timeout_s=2": ("timeout_s", "unknown field 'timeout_s'"),
    "zkv://h?timeout": ("timeout", "not ''"),
    "zkv://h?timeout=": ("timeout", "not ''"),
    "zkv://h?timeout=soon": ("timeout", "not 'soon'"),
    "zkv://h?timeout=0": ("timeout", "not '0'"),
    "zkv://h?timeout=-1": ("timeout", "not '-1'"),
    "zkv://h?timeout=nan": ("timeout", "not 'nan'"),
    "zkv://h?timeout=inf": ("timeout", "not 'inf'"),
    "zkv://h?timeout=1&timeout=2": ("timeout", "twice"),
    "zkv://h?timeout=1&resend_after=0": ("resend_after", "not '0'"),
    "tcp://127.0.0.1:1?timeout=2": ("endpoint", "neither tcp"),
    "tcp://127.0.0.1": ("endpoint", "neither tcp"),
    "tcp://127.0.0.1:0": ("endpoint", "neither tcp"),
    "tcp://127.0.0.1:65536": ("port", "a port is 1 to 65535"),
    "tcp://h:" + "1" * 5000: ("port", "a port is 1 to 65535"),
    "tcp://a b:1": ("endpoint", "neither tcp"),
    "tcp://a\n:1": ("endpoint", "neither tcp"),
    "tcp://\udcff:1": ("endpoint", "neither tcp"),
    "tcp://[nothing]:1": ("endpoint", "neither tcp"),
    "tcp://127.0.0.1:80a": ("endpoint", "neither tcp"),
    "tcp://::1:5757": ("endpoint", "neither tcp"),
    "tcp://*:5757": ("endpoint", "neither tcp"),
    "ipc://": ("endpoint", "1 to 107 bytes"),
    "ipc:///" + 107 * "x": ("endpoint", "1 to 107 bytes"),
    "ipc://\ud800": ("endpoint", "1 to 107 bytes"),
    "localhost:5757": ("endpoint", "did you mean tcp://localhost:5757"),
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_an_endpoint_and_seconds(url: str) -> None:
    assert parse(url) == URLS[url]


@pytest.mark.parametrize("url", WRONG)
def test_what_is_wrong_in_a_url_is_named(url: str, connect: Connect) -> None:
    field, words = WRONG[url]
    with pytest.raises(zkv.BadRequest, match=words) as raised:
        connect(url)
    assert raised.value.details["field"] == field


@pytest.mark.parametrize("address", PRIVATE | PUBLIC)
def test_an_address_that_others_reach_is_not_private(address: str) -> None:
    assert is_private(address) == (address in PRIVATE)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "2", True], ids=repr)
@pytest.mark.parametrize("name", ["timeout_s", "resend_after_s"])
def test_seconds_must_be_more_than_0(name: str, seconds: Any, connect: Connect) -> None:
    with pytest.raises(zkv.BadRequest, match=name) as raised:
        connect(**{name: seconds})
    assert raised.value.details["field"] == name


def test_a_client_may_wait_for_23_days_and_never_send_again(connect: Connect) -> None:
    connect(timeout_s=2_000_000, resend_after_s=float("inf")).close()
    for seconds in (2_000_001, float("inf")):
        with pytest.raises(zkv.BadRequest, match="at most 2000000"):
            connect(timeout_s=seconds)


def test_an_argument_wins_over_the_url_and_the_url_over_the_default(connect: Connect) -> None:
    with connect("zkv://127.0.0.1?timeout=2&resend_after=0.5", timeout_s=3) as client:
        assert client.endpoint == "tcp://127.0.0.1:5757"
        assert (client.timeout_s, client.resend_after_s) == (3, 0.5)
    with connect("tcp://127.0.0.1:1") as client:
        assert (client.timeout_s, client.resend_after_s) == (5, 1)


def test_without_an_endpoint_it_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setenv("ZKV_ENDPOINT", "zkv://127.0.0.1:1?timeout=2")
    with connect() as client:
        assert (client.endpoint, client.timeout_s) == ("tcp://127.0.0.1:1", 2)
    with connect("tcp://127.0.0.1:2") as client:
        assert (client.endpoint, client.timeout_s) == ("tcp://127.0.0.1:2", 5)
    monkeypatch.setenv("ZKV_ENDPOINT", "zkv://h?colour=1")
    with pytest.raises(zkv.BadRequest, match=r"\$ZKV_ENDPOINT.*colour"):
        connect()
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("ZKV_ENDPOINT")
        else:
            monkeypatch.setenv("ZKV_ENDPOINT", unset)
        assert find(None) == Endpoint("tcp://127.0.0.1:5757")


def test_what_is_no_str_is_refused(connect: Connect) -> None:
    for given in (5757, b"tcp://127.0.0.1:1", Path("data")):
        with pytest.raises(zkv.BadRequest, match="must be a str"):
            connect(given)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(tmp_path: Path, connect: Connect) -> None:
    with serving(tmp_path / "data", "--listen", "tcp://[::1]:*") as server:
        port = server.endpoint.rpartition(":")[2]
        for endpoint in (f"zkv://[::1]:{port}", f"tcp://[::1]:{port}"):
            with connect(endpoint) as client:
                client.ping()
