"""Where a server is: an endpoint of ZeroMQ, or a URL.

    tcp://ADDRESS:PORT    ipc://PATH    zkv://HOST[:PORT][?timeout=SECONDS&resend_after=SECONDS]

The one reader of what a user writes, and the only place that dials; it knows nothing of what
is said on a connection.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import re
import socket
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from zkv.errors import BadRequest

DEFAULT_PORT: Final = 5757
DEFAULT_ENDPOINT: Final = f"tcp://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT_S: Final = 5.0
DEFAULT_RESEND_AFTER_S: Final = 1.0
VARIABLE: Final = "ZKV_ENDPOINT"
"""The environment variable with the endpoint of those who name none."""

SECONDS_MAX: Final = 2_000_000
"""23 days: ZeroMQ counts milliseconds in 31 bits."""

_SCHEME: Final = "zkv://"
_IPC: Final = "ipc://"
_PATH_BYTES_MAX: Final = 107
"""Of the name of a socket file: unix(7)."""
_PORT_MAX: Final = 65_535
_HOST: Final = r"[^][:/*\0-\x20\ud800-\udfff]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\]"
_TCP: Final = re.compile(rf"tcp://(?:{_HOST}):(?P<port>[1-9][0-9]*)")
_TCP_HERE: Final = re.compile(rf"tcp://(?:{_HOST}|\*):(?:\*|(?P<port>0|[1-9][0-9]*))")
_PROBE_S: Final = 0.2
_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Endpoint(NamedTuple):
    """What a client needs to know to ask a server."""

    address: str
    """As ZeroMQ takes it."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    resend_after_s: float = DEFAULT_RESEND_AFTER_S


def find(
    given: str | None, timeout_s: float | None = None, resend_after_s: float | None = None
) -> Endpoint:
    """The endpoint that was given, or that of $ZKV_ENDPOINT, or else the default.

    Seconds that are given as numbers win over those of a URL. Raises BadRequest.
    """
    if given is not None:
        found = parse(given)
    elif named := os.environ.get(VARIABLE):
        try:
            found = parse(named)
        except BadRequest as error:
            raise BadRequest(f"${VARIABLE}: {error}", **error.details) from None
    else:
        found = Endpoint(DEFAULT_ENDPOINT)
    if timeout_s is not None:
        found = found._replace(timeout_s=_checked("timeout_s", timeout_s, timeout_s))
    if resend_after_s is not None:
        checked = _checked("resend_after_s", resend_after_s, resend_after_s, most=math.inf)
        found = found._replace(resend_after_s=checked)
    return found


def parse(text: str) -> Endpoint:
    """An endpoint or a URL; raises BadRequest, with the `field` of the URL that is wrong."""
    if type(text) is not str:
        raise BadRequest(f"an endpoint must be a str, not {text!r}", field="endpoint")
    if not text.startswith(_SCHEME):
        _check_address(text, _TCP, "tcp://ADDRESS:PORT nor ipc://PATH nor a zkv:// URL")
        return Endpoint(text)
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise _refusal(text, "port" if "ort" in str(error) else "host", str(error)) from None
    if not host:
        raise _refusal(text, "host", "it names no host")
    if port == 0:
        raise _refusal(text, "port", f"a port is 1 to {_PORT_MAX}")
    if url.username is not None or url.path not in ("", "/") or url.fragment:
        raise _refusal(text, "path", "only a host, a port and a query may stand there")
    host = f"[{host}]" if ":" in host else host
    address = f"tcp://{host}:{port or DEFAULT_PORT}"
    if not _TCP.fullmatch(address):
        raise _refusal(text, "host", f"{host!r} is no host to connect to")
    return Endpoint(address, **_seconds(text, url.query))


def check_listen(text: str) -> None:
    """Raises BadRequest for what a server cannot be told to listen on.

    Where a client names an address and a port, it may name * for every address of this
    machine, and 0 or * for a port that is free.
    """
    _check_address(text, _TCP_HERE, "tcp://ADDRESS:PORT nor ipc://PATH")


def is_private(address: str) -> bool:
    """Whether only this machine reaches an endpoint that a server listens on."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return address.startswith(_IPC) or ipaddress.ip_address(host).is_loopback


def dial(address: str, timeout_s: float) -> socket.socket:
    """A plain connection to an endpoint; what it does later has the same seconds.

    Raises OSError.
    """
    scheme, _, place = address.partition("://")
    if scheme == "ipc":
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(timeout_s)
        try:
            plain.connect(place.replace("@", "\0", 1) if place.startswith("@") else place)
        except BaseException:
            plain.close()
            raise
        return plain
    host, _, port = place.rpartition(":")
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
    except UnicodeError as error:  # of a name that no name server could know
        raise OSError(str(error)) from None
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


def unreachable(address: str) -> str:
    """Why no request could be sent there, as far as a look at the address tells."""
    try:
        listens = _listens(address)
    except OSError as error:
        return no_socket(error)
    if listens is None:
        return f"nothing at {address} speaks ZeroMQ; nothing was sent"
    if listens:
        return (
            f"something listens at {address}, but does not greet as ZeroMQ does: it is no zkv "
            "server, or one that hangs; nothing was sent"
        )
    return f"nothing listens at {address}; nothing was sent"


def no_socket(error: OSError) -> str:
    """Why no request could be sent: this machine, or this process, lacks something for it."""
    return f"cannot make a socket: {error.strerror}; nothing was sent"


def _check_address(text: str, tcp: re.Pattern[str], forms: str) -> None:
    if text.startswith(_IPC):
        try:
            size = len(os.fsencode(text.removeprefix(_IPC)))
        except UnicodeError:
            size = 0
        if not 0 < size <= _PATH_BYTES_MAX:
            raise _refusal(text, "endpoint", f"a PATH has 1 to {_PATH_BYTES_MAX} bytes")
        return
    found = tcp.fullmatch(text)
    if found is None:
        meant = f"; did you mean tcp://{text}?" if tcp.fullmatch(f"tcp://{text}") else ""
        raise _refusal(text, "endpoint", f"it is neither {forms}{meant}")
    port = found["port"] or "0"
    if len(port) > len(f"{_PORT_MAX}") or int(port) > _PORT_MAX:
        raise _refusal(text, "port", f"a port is 1 to {_PORT_MAX}")


def _seconds(text: str, query: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, given in parse_qsl(query, keep_blank_values=True):
        if name not in ("timeout", "resend_after"):
            raise _refusal(text, name, f"unknown field {name!r}; there are timeout, resend_after")
        if f"{name}_s" in found:
            raise _refusal(text, name, f"{name} comes twice")
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        found[f"{name}_s"] = _checked(name, number, given)
    return found


def _checked(name: str, seconds: float, given: object, most: float = SECONDS_MAX) -> float:
    if isinstance(seconds, int | float) and seconds is not True and 0 < seconds <= most:
        return seconds
    limit = f" and at most {SECONDS_MAX}" if most == SECONDS_MAX else ""
    raise BadRequest(f"{name} must be seconds, more than 0{limit}, not {given!r}", field=name)


def _refusal(text: str, field: str, reason: str) -> BadRequest:
    return BadRequest(f"cannot use the endpoint {text!r}: {reason}", field=field)


def _listens(address: str) -> bool | None:
    """Whether a plain connection is taken there; None if that is not known soon.

    A name other than localhost is not looked up: that could take longer than any timeout.
    Raises OSError for want of a socket.
    """
    scheme, _, place = address.partition("://")
    try:
        host = place.rpartition(":")[0].strip("[]")
        if scheme == "tcp" and host != "localhost":
            socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        dial(address, _PROBE_S).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            raise
        return None
    return True
