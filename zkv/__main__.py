"""zkv-server: the one place that chooses. It reads the command line, opens the engine, puts
a service before it and a server before that, and stops them in the other order.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import get_args

from zkv import __version__, loading, logs, protocol
from zkv.endpoint import DEFAULT_ENDPOINT, check_listen, is_private
from zkv.engines.disk import SHORTAGES, Disk
from zkv.engines.journal import Fsync
from zkv.engines.local import LocalEngine
from zkv.engines.recovery import holds_store, recover
from zkv.engines.repair import repair
from zkv.errors import (
    AddressInUse,
    BadRequest,
    Damaged,
    DiskFailed,
    FolderUnusable,
    Shortage,
    StartError,
)
from zkv.server import Server, keep_to_one_cpu
from zkv.service import Service
from zkv.signals import Signals

log = logging.getLogger("zkv.server")

DEFAULT_DATA = "./zkv-data"
EXIT_CRASHED = 70
FILES_KEPT = 96
"""Of the files that the system allows, those that are not for connections: a third of them is
open always, by sockets and the journal; a compaction, a backup and bursts take from the rest."""
UNREAD_BYTES_MAX = 256 * 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server, or the check; returns the exit code."""
    args = _parser().parse_args(argv)
    logs.configure(args.log_level, args.log_format)
    named = args.check or args.repair
    folder = named if isinstance(named, str) else args.data
    try:
        signals = Signals(None if named else 0)
        if args.check:
            return _check(folder)
        if args.repair:
            return _repair(folder, signals, accept_empty=args.accept_empty)
        return _serve(args, signals)
    except Damaged as error:
        hint = (
            f"; a copy of a folder in use may look so, and zkv-client backup makes one that does "
            f"not; to go on with what is good: zkv-server --repair {folder}"
        )
        hint = "" if args.repair else hint
        print(f"zkv-server: {error}{hint}", file=sys.stderr)
        return error.exit_code
    except StartError as error:
        print(f"zkv-server: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"zkv-server: {error}", file=sys.stderr)
        return (Shortage if error.errno in SHORTAGES else DiskFailed).exit_code
    except MemoryError:
        print("zkv-server: out of memory", file=sys.stderr)
        return Shortage.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zkv-server",
        description="A durable key-value store for ZeroMQ clients.",
        epilog="SIGTERM, SIGINT and SIGHUP stop it; a second one ends it at once. "
        "Exit codes: 0 stopped, also while it loads, or checked, 2 usage, 65 damaged data, "
        "69 address in use, 70 crashed, 71 no file, memory or thread to be had, "
        "73 data folder unusable, 74 disk failed, 75 data folder in use, "
        "128 + N broken off by signal N.",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=_folder,
        default=DEFAULT_DATA,
        help="data folder (default: %(default)s)",
    )
    parser.add_argument(
        "--listen",
        metavar="ENDPOINT",
        action="append",
        type=_endpoint,
        help="tcp://ADDRESS:PORT or ipc://PATH; may be given several times "
        f"(default: {DEFAULT_ENDPOINT})",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_positive,
        default=1,
        help="worker threads (default: %(default)s); with one, all that waits while it syncs "
        "becomes one batch",
    )
    parser.add_argument(
        "--any-cpu",
        action="store_true",
        help="let threads run on any CPU; all stay on one otherwise, which is faster unless "
        "something else keeps that one busy",
    )
    parser.add_argument(
        "--connections-max",
        metavar="N",
        type=_positive,
        default=sys.maxsize,
        help="refuse more connections than this (default: as many as the system allows files, "
        f"less {FILES_KEPT})",
    )
    parser.add_argument(
        "--unread-bytes-max",
        metavar="N",
        type=_positive,
        default=UNREAD_BYTES_MAX,
        help="bytes of replies that clients may leave unread, all together; beyond it large "
        "replies are refused, and connections that read nothing are closed (default: %(default)s)",
    )
    parser.add_argument(
        "--old-zmtp",
        action="store_true",
        help="let in clients that speak ZMTP 1 or 2, such as jeromq before 0.4; then what a web "
        "page sends to the port may be carried out as a request",
    )
    parser.add_argument(
        "--fsync",
        choices=get_args(Fsync),
        default="always",
        help="when writes are synced to disk: before they are acknowledged (always, the default), "
        "once a second (interval), or when the system likes (never)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="debug logs every operation (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--check",
        metavar="DIR",
        type=_folder,
        nargs="?",
        const=True,
        help="read every line of the data folder, change nothing, and exit",
    )
    parser.add_argument(
        "--repair",
        metavar="DIR",
        type=_folder,
        nargs="?",
        const=True,
        help="go on with whatever lines of a damaged folder are good, set the old files aside, "
        "say what was lost, and exit",
    )
    parser.add_argument(
        "--accept-empty",
        action="store_true",
        help="let --repair go on when not one key can be read",
    )
    parser.add_argument("--version", action="version", version=f"zkv {__version__}")
    return parser


def _folder(text: str) -> str:
    if not text:  # as of a variable that is not set; to Python it is the current folder
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _endpoint(text: str) -> str:
    try:
        check_listen(text)
    except BadRequest as error:
        raise argparse.ArgumentTypeError(error.message) from None
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _expect_store(disk: Disk) -> None:
    if not holds_store(disk):
        raise FolderUnusable(f"the folder {disk.folder} holds no store of zkv")


def _check(folder: str) -> int:
    disk = Disk(folder)
    with disk.lock(make=False), loading.shown(log) as on_progress:
        _expect_store(disk)
        found = recover(disk, on_progress)
    print(f"{folder}: good, {len(found.table)} keys, revision {found.table.revision}")
    if found.tail and found.tail.torn_bytes:
        print(f"its last {found.tail.torn_bytes} bytes are a torn tail, to be set aside at start")
    return 0


def _repair(folder: str, signals: Signals, *, accept_empty: bool) -> int:
    disk = Disk(folder)
    with disk.lock(make=False):
        _expect_store(disk)
        with suppress(Damaged):
            recover(disk)
            print(f"{folder}: good, nothing to repair")
            return 0
        done = repair(disk, accept_empty=accept_empty, before_change=signals.hold)
    for lost in done.lost:
        print(f"lost: {lost}")
    for name in done.set_aside:
        print(f"set aside: {name}")
    print(f"{folder}: repaired, {done.keys} keys, revision {done.revision}")
    return 0


def _serve(args: argparse.Namespace, signals: Signals) -> int:
    files_max = _raise_file_limit()
    connections_max = max(files_max - FILES_KEPT, files_max // 4)
    started = time.monotonic()
    with loading.shown(log) as on_progress:
        engine = LocalEngine(
            Disk(args.data),
            fsync=args.fsync,
            on_failure=_exit_engine_failed,
            on_progress=on_progress,
        )
    signals.serve()
    gc.freeze()  # the data stays: later collections need not look through it
    service = Service(engine, __version__)
    if not args.any_cpu:
        keep_to_one_cpu()
    try:
        server = Server(
            args.listen or [DEFAULT_ENDPOINT],
            service.handle,
            workers=args.workers,
            message_bytes_max=protocol.MESSAGE_BYTES_MAX,
            unread_bytes_max=args.unread_bytes_max,
            connections_max=min(args.connections_max, connections_max),
            on_crash=_exit_crashed,
            old_peers=args.old_zmtp,
        )
        service.add_info("connections", server.info)
        server.start()
    except OSError as error:
        engine.close()
        kind = Shortage if error.errno in SHORTAGES else AddressInUse
        raise kind(f"cannot listen on {error.filename}: {error.strerror}") from None
    except RuntimeError as error:  # of a thread
        engine.close()
        raise Shortage(str(error)) from None
    print(
        f"zkv {__version__} serves {' '.join(server.endpoints)} from {args.data}: "
        f"{engine.info()['keys']} keys, revision {engine.revision}, "
        f"loaded in {time.monotonic() - started:.2f} s",
        flush=True,
    )
    for address in server.endpoints:
        if not is_private(address):
            log.warning("%s: whoever reaches it may read and change everything", address)
    if args.old_zmtp:
        log.warning("--old-zmtp: whatever a web page sends to the port may be done as a request")
    if args.fsync != "always":
        log.warning(
            "--fsync %s: a power failure may take writes that were acknowledged", args.fsync
        )
    log.info("stopping on %s", signals.wait().name)
    stopped = server.stop()
    engine.close()
    log.info("stopped at revision %d", engine.revision)
    if not stopped:
        log.critical("a thread of the server hangs; what was acknowledged is on disk")
        os._exit(EXIT_CRASHED)
    return 0


def _raise_file_limit() -> int:
    """Each connection is a file; returns how many files there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


def _exit_engine_failed(error: Exception) -> None:
    cause = error.__cause__
    if not isinstance(cause, OSError):  # the journal cannot go on, but no disk is to blame
        _exit_crashed(cause or error)
    log.critical("%s; exiting, since nothing more can be acknowledged", error)
    os._exit(DiskFailed.exit_code)


def _exit_crashed(error: BaseException) -> None:
    log.critical("a thread of the server ended", exc_info=error)
    os._exit(EXIT_CRASHED)


if __name__ == "__main__":
    sys.exit(main())
