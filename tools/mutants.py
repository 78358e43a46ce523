#!/usr/bin/env python3
"""Shows that the tests can fail: makes zkv wrong, one line at a time, and has the tests that
are there for that line find it out.

python3 tools/mutants.py               every mutant, and whether it was caught
python3 tools/mutants.py --only NAME   one of them; may be given several times
python3 tools/mutants.py --list        their names; and that each can still be made

A mutant lives in a copy of zkv and its tests, in a temporary folder; servers that the tests
start are of that copy too. The tests must pass without a mutant, and its own fail with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from environment import ROOT, VENV, python_with

TIMEOUT_S: Final = 900
"""What the tests of one mutant may take; a mutant that hangs them longer is caught too."""

PASSED, FAILED = 0, 1  # pytest's exit codes; any other is a mistake in the table


class Mutant(NamedTuple):
    """One way to be wrong: in this file, this text becomes that, and these tests must fail."""

    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


MUTANTS: Final = (
    Mutant(
        "no lock round read-modify-write",
        "zkv/engines/local.py",
        "        with self._lock:\n"
        "            if self._closed:\n"
        '                raise Unavailable("the store is closed")\n'
        "            now",
        "        if True:\n            now",
        ("tests/test_transactions.py::test_transactions_never_interleave",),
    ),
    Mutant(
        "sessions not in the journal",
        "zkv/engines/journal.py",
        "    if commit.completed is not None:",
        "    if False:",
        ("tests/test_sessions.py::test_a_request_sent_again_gets_the_same_reply_and_is_not_run",),
    ),
    Mutant(
        "sessions not in the snapshot",
        "zkv/engines/compaction.py",
        "            yield snapshot.session_line(completed, revision, self._seed)",
        "            yield from ()",
        ("tests/test_sessions.py::test_a_request_sent_again_gets_the_same_reply_and_is_not_run",),
    ),
    Mutant(
        "a resent request of an unknown session is run",
        "zkv/engines/sessions.py",
        "            if retry:",
        "            if False:",
        ("tests/test_sessions.py::test_a_retry_of_an_unknown_session_is_not_run",),
    ),
    Mutant(
        "a client does not say that it sends again",
        "zkv/exchange.py",
        '= {"retry": True}',
        "= {}",
        (
            "tests/test_exactly_once.py"
            "::test_a_server_that_forgot_the_session_is_not_made_to_do_it_again",
        ),
    ),
    Mutant(
        "a request sent again is run again",
        "zkv/engines/local.py",
        "            if known is not None:",
        "            if False:",
        ("tests/test_exactly_once.py::test_each_write_is_done_once",),
    ),
    Mutant(
        "ttl restored as relative",
        "zkv/engines/journal.py",
        "        table.load(key, packed, revision, None if expires is None else expires.get(key))",
        "        deadline = None if expires is None else expires.get(key)\n"
        "        if deadline is not None:\n"
        "            deadline += datetime.now(UTC).timestamp() - 1_795_377_851\n"
        "        table.load(key, packed, revision, deadline)",
        ("tests/test_expiry.py::test_what_expires_while_nothing_runs_does_not_come_back",),
    ),
    Mutant(
        "expired keys are there until swept",
        "zkv/engines/local.py",
        "            self._sweep(now)\n            if one_turn",
        "            if one_turn",
        ("tests/test_expiry.py::test_nothing_sees_an_expired_key",),
    ),
    Mutant(
        "deadlines are found anew without the newest",
        "zkv/engines/table.py",
        "            heapq.heappush(self._deadlines, (deadline, key))\n",
        "            heapq.heappush(self._deadlines, (deadline, key))\n"
        "            if len(self._deadlines) > 2 * len(self._entries) + 1000:\n"
        "                self._index_deadlines()\n",
        (
            "tests/test_expiry.py::test_a_key_goes_at_its_last_deadline_however_often_that_was_moved",
        ),
    ),
    Mutant(
        "values compared with ==",
        "zkv/operations.py",
        "values.equal(entry.packed, wanted)",
        "values.unpack(entry.packed) == values.unpack(wanted)",
        ("tests/test_store.py::test_a_value_is_compared_with_its_type",),
    ),
    Mutant(
        "no fsync",
        "zkv/engines/journal.py",
        '        if self._fsync == "always":',
        "        if False:",
        ("tests/test_engines.py::test_an_outcome_is_on_disk_before_it_is_told",),
    ),
    Mutant(
        "fsync does not reach the system",
        "zkv/engines/disk.py",
        "        os.fdatasync(handle)",
        "        pass",
        ("tests/test_never_backwards.py::test_what_is_acknowledged_was_synced",),
    ),
    Mutant(
        "no fsync of the folder",
        "zkv/engines/disk.py",
        "        _sync_folder(self.folder)",
        "        pass",
        ("tests/test_never_backwards.py::test_what_is_acknowledged_was_synced",),
    ),
    Mutant(
        "acknowledged before the fsync",
        "zkv/engines/journal.py",
        "        if self.confirmed < revision or self._failure is not None:\n            with",
        "        if False:\n            with",
        (
            "tests/test_engines.py::test_an_outcome_is_on_disk_before_it_is_told",
            "tests/test_engines.py::test_nothing_tells_of_what_is_not_on_disk",
        ),
    ),
    Mutant(
        "a get tells what is not durable",
        "zkv/transaction.py",
        "        if version > self.seen:",
        "        if False:",
        ("tests/test_engines.py::test_nothing_tells_of_what_is_not_on_disk",),
    ),
    Mutant(
        "fsync tried again after it failed",
        "zkv/engines/journal.py",
        "        if self._failure is None:",
        "        if True:",
        ("tests/test_engines.py::test_a_failed_write_or_sync_is_final",),
    ),
    Mutant(
        "CRC unchecked",
        "zkv/engines/line.py",
        "    if line[-_TAIL_BYTES:] != _TAIL % crc32(body, seed):",
        "    if not line.endswith(b'\"}\\n'):",
        ("tests/test_journal.py::test_what_is_no_line_is_refused",),
    ),
    Mutant(
        "CRC unchecked where many lines are read at once",
        "zkv/engines/line.py",
        '        if "".join([record.crc for record in found]) '
        '!= pack(f">{len(crcs)}I", *crcs).hex():',
        "        if False:",
        ("tests/test_snapshot.py::test_a_changed_byte_is_refused",),
    ),
    Mutant(
        "a line may end with any white space",
        "zkv/engines/line.py",
        '        if not block[-1].endswith(b"\\n"):',
        "        if False:",
        ("tests/test_journal.py::test_a_line_without_its_newline_is_torn",),
    ),
    Mutant(
        "room is taken for a torn line",
        "zkv/engines/journal.py",
        '        data = disk.read(name, start, size - start).rstrip(b" ")',
        "        data = disk.read(name, start, size - start)",
        ("tests/test_journal.py::test_room_is_no_part_of_a_journal",),
    ),
    Mutant(
        "a footer brings room along",
        "zkv/engines/journal.py",
        "        self._disk.write_at(self._segment.handle, end, self._segment.end)\n",
        "        end = end.ljust(ROOM_BYTES)\n"
        "        self._disk.write_at(self._segment.handle, end, self._segment.end)\n",
        ("tests/test_crash_simulation.py",),
    ),
    Mutant(
        "a value with a tag is loaded as it stands",
        "zkv/values.py",
        'TAG_MARK: Final = b"$"',
        'TAG_MARK: Final = b"no mark"',
        ("tests/test_snapshot.py::test_what_is_put_comes_back_from_a_journal_and_from_snapshots",),
    ),
    Mutant(
        "values with a tag are not looked for where there are several",
        "zkv/values.py",
        "to_json(found) if TAG_MARK in together else found",
        "found",
        ("tests/test_snapshot.py::test_what_is_put_comes_back_from_a_journal_and_from_snapshots",),
    ),
    Mutant(
        "the order of a snapshot unchecked",
        "zkv/engines/snapshot.py",
        "                if record.key <= last:",
        "                if False:",
        ("tests/test_snapshot.py::test_good_lines_that_are_no_snapshot_are_refused",),
    ),
    Mutant(
        "a snapshot that was cut is read as far as it goes",
        "zkv/engines/snapshot.py",
        '    raise Damaged(f"{name}: it ends at byte {offset} without its footer")',
        "    return",
        ("tests/test_snapshot.py::test_a_cut_is_refused",),
    ),
    Mutant(
        "compaction forgets deadlines",
        "zkv/engines/compaction.py",
        "            deadline = None if record.expires is None else record.expires.get(key)",
        "            deadline = None",
        ("tests/test_expiry.py::test_deadlines_are_absolute_on_disk",),
    ),
    Mutant(
        "a bad line anywhere is a torn tail",
        "zkv/engines/recovery.py",
        "        _refuse_if_synced(disk, name, offset, seed, expected)\n    table",
        "        pass\n    table",
        (
            "tests/test_never_backwards.py::test_a_bad_line_is_no_torn_tail_when_good_batches_follow",
        ),
    ),
    Mutant(
        "a value that runs python shares the packer of all",
        "zkv/values.py",
        "= msgpack.packb\n",
        "= pack\n",
        ("tests/test_store.py::test_a_value_that_runs_python_gets_into_no_other",),
    ),
    Mutant(
        "a fork closes the store of its parent",
        "zkv/embedded.py",
        "        if self._pid == os.getpid():\n            self._engine.close()",
        "        self._engine.close()",
        ("tests/test_operators.py::test_a_fork_leaves_the_store_to_its_parent",),
    ),
    Mutant(
        "a fork writes into the store of its parent",
        "zkv/embedded.py",
        "        if self._pid != os.getpid():\n            raise",
        "        if False:\n            raise",
        ("tests/test_operators.py::test_a_fork_leaves_the_store_to_its_parent",),
    ),
    Mutant(
        "a reply that is kept takes no room",
        "zkv/engines/local.py",
        "0 if commit.completed is None else commit.completed.bytes",
        "0",
        ("tests/test_disk_errors.py::test_a_reply_that_is_kept_takes_room_as_well",),
    ),
    Mutant(
        "whatever a session keeps takes room",
        "zkv/engines/local.py",
        "(reply_bytes if reply_bytes > REPLY_BYTES_FREE else 0)",
        "reply_bytes",
        ("tests/test_disk_errors.py::test_a_new_client_deletes_on_a_full_disk",),
    ),
    Mutant(
        "json is as large as msgpack",
        "zkv/engines/local.py",
        "JSON_TIMES_MAX * size",
        "size",
        ("tests/test_disk_errors.py::test_a_value_that_is_much_larger_in_json_takes_as_much_room",),
    ),
    Mutant(
        "the keeper ends when something fails once",
        "zkv/engines/local.py",
        "                except BaseException as error:  # the other steps do not depend on it\n",
        "                except KeyError as error:\n",
        ("tests/test_disk_errors.py::test_what_fails_once_ends_no_keeper",),
    ),
    Mutant(
        "a session tells what is not on disk",
        "zkv/engines/local.py",
        "return Outcome(error, self._table.revision)",
        "return Outcome(error, self._journal.confirmed)",
        ("tests/test_engines.py::test_a_session_tells_nothing_of_what_is_not_on_disk",),
    ),
    Mutant(
        "a full disk takes a session for each refusal",
        "zkv/exchange.py",
        "return isinstance(error, Stale",
        "return isinstance(error, Error | Stale",
        ("tests/test_disk_errors.py::test_what_a_full_disk_refuses_takes_no_new_session",),
    ),
    Mutant(
        "a block may be sent twice",
        "zkv/block.py",
        "        self._sent = True\n",
        "",
        ("tests/test_transactions.py",),
    ),
    Mutant(
        "a peer that drips has all the time there is",
        "zkv/zmtp.py",
        "        left_s = self._until - perf_counter()\n",
        "        left_s = self._timeout_s\n",
        ("tests/test_zmtp.py::test_a_peer_that_says_little_but_often_has_no_more_time",),
    ),
    Mutant(
        "a dealer that fell silent after all were cancelled stays open",
        "zkv/dealer.py",
        "        self._close_if_done()  # a call that was cancelled does not wait for it\n",
        "",
        (
            "tests/test_aio.py::test_what_is_cancelled_leaves_no_socket_open_and_does_not_hold_up_the_end",
        ),
    ),
    Mutant(
        "a compaction imports from the current folder",
        "zkv/engines/compaction.py",
        '"-P", ',
        "",
        (
            "tests/test_compaction.py::test_a_file_of_the_current_folder_is_no_module_of_a_compaction",
        ),
    ),
    Mutant(
        "only the last new folder is durable",
        "zkv/engines/disk.py",
        "        make_folder(folder.absolute().parent, exist_ok=True)\n",
        "        folder.absolute().parent.mkdir(parents=True)\n",
        ("tests/test_operators.py::test_a_new_folder_is_durable_and_so_are_those_above_it",),
    ),
    Mutant(
        "an unknown durability is none",
        "zkv/engines/local.py",
        "        if fsync not in get_args(Fsync):",
        "        if False:",
        ("tests/test_engines.py::test_an_unknown_durability_is_refused",),
    ),
    Mutant(
        "a failed compaction hides the snapshot that a backup wants",
        "zkv/backup.py",
        "                if revision >= wanted:",
        "                if revision >= wanted and not info['compaction_error']:",
        (
            "tests/test_operators.py::"
            "test_a_backup_needs_no_other_snapshot_than_the_one_that_is_there",
        ),
    ),
    Mutant(
        "two nans may be keys of a map",
        "zkv/values.py",
        " or sum([key != key for key in distinct]) > 1",
        "",
        ("tests/test_values.py::test_a_nan_equals_a_nan_whatever_its_payload",),
    ),
    Mutant(
        "a whole line that makes no sense is a torn tail",
        "zkv/engines/recovery.py",
        "                except ValueError as error:  # its CRC is good: it is not torn",
        "                except KeyError as error:",
        (
            "tests/test_operators.py::"
            "test_a_line_that_is_whole_and_makes_no_sense_is_damage_and_costs_only_itself",
        ),
    ),
    Mutant(
        "the watermark ignored",
        "zkv/engines/recovery.py",
        "    if revision < mark.revision:",
        "    if False:",
        ("tests/test_never_backwards.py::test_a_store_that_lost_what_it_had_synced_is_refused",),
    ),
    Mutant(
        "revisions given out again after a crash",
        "zkv/engines/recovery.py",
        "expected, 1 + (reserved or 0))",
        "expected)",
        ("tests/test_never_backwards.py::test_no_revision_is_given_out_twice",),
    ),
    Mutant(
        "a client does not see that data is lost",
        "zkv/exchange.py",
        "    if revision < seen:",
        "    if False:",
        ("tests/test_never_backwards.py::test_a_client_says_when_data_is_lost",),
    ),
    Mutant(
        "a connection that failed is used again",
        "zkv/client.py",
        "            if spoiled:",
        "            if False:",
        (
            "tests/test_client.py::test_a_late_reply_goes_to_nobody",
            "tests/test_client.py::test_a_signal_handler_may_break_off_a_call",
        ),
    ),
    Mutant(
        "nothing but puts does not wait for its checks",
        "zkv/block.py",
        "if self._puts and not self._ops and not self._checks:",
        "if self._puts and not self._ops:",
        ("tests/test_transactions.py",),
    ),
    Mutant(
        "puts go behind what was asked for behind them",
        "zkv/block.py",
        "ttl is None and not keep_ttl and not self._ops and",
        "ttl is None and not keep_ttl and",
        ("tests/test_transactions.py::TestBlock::test_what_comes_behind_puts_sees_them",),
    ),
    Mutant(
        "what is sent may be late",
        "zkv/client.py",
        "        deadline = self.used_at + timeout_s",
        "        deadline = self.used_at + 60",
        ("tests/test_zmtp.py::test_nothing_is_sent_when_its_time_is_over",),
    ),
    Mutant(
        "a connection that has ended is used again",
        "zkv/zmtp.py",
        "        return bool(self._ahead or self._events.poll(0))",
        "        return False",
        ("tests/test_zmtp.py::test_a_connection_that_ended_while_nobody_used_it_is_not_used",),
    ),
    Mutant(
        "what has come so far is the whole reply",
        "zkv/zmtp.py",
        "len(data) == 2 + data[1]:",
        "True:",
        ("tests/test_zmtp.py::test_what_the_peer_says_may_come_in_pieces",),
    ),
    Mutant(
        "the frames of a reply share their memory",
        "zkv/zmtp.py",
        "bytes(frame) if more else frame",
        "frame",
        ("tests/test_zmtp.py::test_a_reply_keeps_nothing_of_another",),
    ),
    Mutant(
        "a task gets whatever reply comes",
        "zkv/dealer.py",
        "self._take(frames[0].bytes)",
        "self._take(next(iter(self._calls), b''))",
        ("tests/test_aio.py::test_a_cancelled_call_leaves_the_others_their_replies",),
    ),
    Mutant(
        "what was cancelled is sent",
        "zkv/dealer.py",
        "            if call.heard_before is None:\n"
        "                self._take(number)\n            elif",
        "            if",
        (
            "tests/test_aio.py::test_what_is_cancelled_before_it_could_be_sent_is_not_sent",
            "tests/test_aio.py::test_what_is_cancelled_before_it_could_be_sent_takes_no_room",
        ),
    ),
    Mutant(
        "a fork goes on with the sockets of its parent",
        "zkv/client.py",
        "        if self._pid != os.getpid():",
        "        if False:",
        ("tests/test_client.py::test_a_forked_child_goes_on_using_it",),
    ),
    Mutant(
        "a worker swallows an exception, and its client waits",
        "zkv/server.py",
        "        replies = self._handle(bodies, unread.bytes_max - unread.bytes)\n",
        "        replies = bodies\n"
        "        with suppress(Exception):\n"
        "            replies = self._handle(bodies, unread.bytes_max - unread.bytes)\n",
        ("tests/test_server.py::test_a_handler_that_raises_is_reported_at_once",),
    ),
    Mutant(
        "a worker waits until its batch is full",
        "zkv/server.py",
        "        return clients.recv(zmq.NOBLOCK)",
        "        return clients.recv()",
        ("tests/test_server.py::test_each_of_many_requests_in_flight_is_answered_once",),
    ),
    Mutant(
        "a server stops before its last replies are on their way",
        "zkv/server.py",
        "            while self._workers_left and",
        "            while False and",
        ("tests/test_server.py::test_stop_delivers_every_reply_that_was_made",),
    ),
    Mutant(
        "a worker that stops takes no more requests from the proxy",
        "zkv/server.py",
        "            while True:  # to the end",
        "            while False:  # to the end",
        ("tests/test_server.py::test_stop_ends_though_more_wait_than_the_workers_take",),
    ),
    Mutant(
        "a worker waits for the proxy to take its replies",
        "zkv/server.py",
        "            clients.sndhwm = 0  # or it waits",
        "            clients.sndhwm = 100  # or it waits",
        ("tests/test_server.py::test_requests_under_way_are_all_answered",),
    ),
    Mutant(
        "a connection takes all turns",
        "zkv/turns.py",
        "                queues[connection] = queue\n        for",
        "                queues[connection] = queue\n"
        "                queues.move_to_end(connection, last=False)\n"
        "        for",
        (
            "tests/test_turns.py",
            "tests/test_server.py::test_a_reply_leaves_while_others_wait_for_slow_requests",
        ),
    ),
    Mutant(
        "a batch goes on however long it takes",
        "zkv/engines/local.py",
        "            if size > TURN_BYTES or clock() > until:",
        "            if False:",
        (
            "tests/test_engines.py::TestContract::test_calls_that_take_long_wait_for_another_turn",
            "tests/test_engines.py::TestContract::test_calls_that_read_much_wait_for_another_turn",
        ),
    ),
    Mutant(
        "a peer of ZMTP 2 is let in",
        "zkv/server.py",
        "    if not old_peers:",
        "    if False:",
        ("tests/test_connections.py::test_an_old_peer_is_refused",),
    ),
    Mutant(
        "more connections are taken than may be",
        "zkv/connections.py",
        "        if len(self._open) > self.open_max:",
        "        if False:",
        ("tests/test_connections.py::test_connections_beyond_the_most_are_refused",),
    ),
    Mutant(
        "small replies that many leave unread are not bounded",
        "zkv/unread.py",
        "if self.bytes <= self.bytes_max else 0",
        "if True else 0",
        ("tests/test_connections.py::test_small_replies_that_many_leave_unread_are_bounded",),
    ),
    Mutant(
        "what a reply repeats is not counted",
        "zkv/server.py",
        """ + len(b"".join(envelope)) + FRAME_BYTES""",
        " + FRAME_BYTES",
        ("tests/test_connections.py::test_what_a_reply_repeats_is_counted_as_unread",),
    ),
    Mutant(
        "an envelope of any number of frames is repeated",
        "zkv/server.py",
        "            if len(envelope) > ENVELOPE_FRAMES_MAX + 1:",
        "            if False:",
        ("tests/test_server.py::test_an_envelope_of_many_frames_is_echoed_whole_or_refused",),
    ),
    Mutant(
        "requests that wait for one who does not read keep others out",
        "zkv/server.py",
        "            self._unread.dropped += turns.drop({*self._unread.held})",
        "            pass",
        (
            "tests/test_connections.py"
            "::test_requests_of_a_connection_that_reads_nothing_keep_no_others_out",
        ),
    ),
    Mutant(
        "connections that have gone are remembered",
        "zkv/unread.py",
        "        if len(self.since_mark) > CONNECTIONS_MAX:",
        "        if False:",
        ("tests/test_connections.py::test_connections_that_have_gone_are_not_remembered",),
    ),
    Mutant(
        "a compaction brings back sessions that were forgotten",
        "zkv/engines/compaction.py",
        """            self._read_sessions(base)
        for name in segments:
            self._read_segment(name)
""",
        """            before, self._sessions = self._sessions, Sessions()
            self._read_sessions(base)
            base_sessions, self._sessions = self._sessions, before
        for name in segments:
            self._read_segment(name)
        if base is not None:
            for completed, revision in self._sessions.completed():
                base_sessions.remember(completed, revision)
            self._sessions = base_sessions
""",
        ("tests/test_sessions.py::test_a_session_that_was_forgotten_is_not_known_again",),
    ),
    Mutant(
        "kept replies of any size are sent in one turn",
        "zkv/engines/sessions.py",
        "        return completed.result, revision, completed.bytes\n",
        "        return completed.result, revision, 0\n",
        ("tests/test_sessions.py::test_large_replies_that_are_kept_end_a_turn",),
    ),
    Mutant(
        "old replies are given up all at once",
        "zkv/engines/sessions.py",
        "        for _ in range(at_most):",
        "        while True:",
        ("tests/test_sessions.py::test_old_replies_are_given_up_a_few_at_a_time",),
    ),
    Mutant(
        "a close waits long for a server that has gone",
        "zkv/client.py",
        "                    connection.carry(steps, GIVE_UP_S)",
        "                    connection.carry(steps, self.timeout_s)",
        ("tests/test_client.py::test_close_waits_little_for_a_server_that_has_gone",),
    ),
    Mutant(
        "a client that closes asks on a connection that others may take",
        "zkv/client.py",
        "        was_open, self._closed = not self._closed, True\n",
        "        was_open = not self._closed\n",
        ("tests/test_client.py::test_close_gives_up_large_replies_on_a_connection_of_its_own",),
    ),
    Mutant(
        "a mark of nothing ends a worker",
        "zkv/unread.py",
        "            self._bytes.pop(connection, None)",
        "            del self._bytes[connection]",
        (
            "tests/test_connections.py"
            "::test_two_workers_may_mark_the_replies_of_a_connection_at_the_same_time",
        ),
    ),
    Mutant(
        "replies are handed on however many are unread",
        "zkv/unread.py",
        "            self.held.add(connection)",
        "            pass",
        (
            "tests/test_connections.py::test_replies_that_one_leaves_unread_are_bounded_and_none_is_lost",
        ),
    ),
    Mutant(
        "replies are made though there is no room for them",
        "zkv/service.py",
        "                if len(reply) > max(room, SMALL_BYTES):",
        "                if False:",
        ("tests/test_connections.py::test_replies_that_many_leave_unread_are_bounded",),
    ),
    Mutant(
        "a connection that takes nothing stays",
        "zkv/connections.py",
        "            elif now - since > STALLED_S:",
        "            elif False:",
        ("tests/test_connections.py::test_a_connection_that_takes_nothing_is_closed",),
    ),
    Mutant(
        "a stop waits for a worker that hangs",
        "zkv/server.py",
        "        ending.join(until",
        "        ending.join(10 + until",
        ("tests/test_server.py::test_stop_ends_though_a_worker_hangs",),
    ),
    Mutant(
        "a flood of sessions drives out those in use",
        "zkv/engines/sessions.py",
        "        known = self._used if completed.seq >= USED_SEQ else self._new\n",
        "        known = self._new\n",
        ("tests/test_sessions.py::test_a_session_in_use_stays_though_others_come_without_end",),
    ),
    Mutant(
        "kept replies are not bounded in bytes",
        "zkv/engines/sessions.py",
        "            while self.bytes > REPLIES_BYTES_MAX:",
        "            while False:",
        ("tests/test_sessions.py::test_large_replies_are_bounded_in_bytes_and_their_numbers_stay",),
    ),
    Mutant(
        "what was given up is run again",
        "zkv/engines/sessions.py",
        "        if completed.result is None:\n            raise SessionLost(",
        "        if completed.result is None:\n            return None\n"
        "        if False:\n            raise SessionLost(",
        ("tests/test_sessions.py::test_large_replies_are_bounded_in_bytes_and_their_numbers_stay",),
    ),
    Mutant(
        "files hold the names of sessions",
        "zkv/engines/sessions.py",
        '    return "#" + sha256(kind + data).hexdigest()',
        '    return "#" + (kind + data).decode("latin-1").ljust(64)',
        ("tests/test_sessions.py::test_no_file_holds_the_name_of_a_session",),
    ),
    Mutant(
        "a file that is no socket makes room for one",
        "zkv/server.py",
        "    if not stat.S_ISSOCK(os.lstat(path).st_mode):",
        "    if False:",
        ("tests/test_server.py::test_an_ipc_path_that_is_no_socket_is_left_alone",),
    ),
    Mutant(
        "a folder is locked by its file alone",
        "zkv/engines/lock.py",
        "            _lock(handles[0], folder)",
        "            pass",
        ("tests/test_lock.py::test_a_lock_file_that_is_removed_lets_no_second_server_in",),
    ),
    Mutant(
        "a lock is all that keeps a second server out",
        "zkv/engines/lock.py",
        "            if owner != _owner() and _runs(owner):",
        "            if False:",
        (
            "tests/test_lock.py"
            "::test_a_lock_that_does_not_reach_a_second_server_stops_it_all_the_same",
        ),
    ),
    Mutant(
        "what is written to a folder that is gone is acknowledged",
        "zkv/engines/journal.py",
        "        if not self._disk.has_name(",
        "        if False and not self._disk.has_name(",
        ("tests/test_lock.py::test_a_folder_that_is_removed_or_moved_is_a_failed_disk",),
    ),
    Mutant(
        "a folder that is gone is not missed",
        "zkv/engines/lock.py",
        "        except (FileNotFoundError, NotADirectoryError):\n            return True",
        "        except (FileNotFoundError, NotADirectoryError):\n            return False",
        ("tests/test_lock.py::test_a_folder_that_is_removed_or_moved_is_a_failed_disk",),
    ),
    Mutant(
        "close unlocks nothing that a fork has open",
        "zkv/engines/lock.py",
        "                fcntl.flock(handle, fcntl.LOCK_UN)",
        "                pass",
        ("tests/test_lock.py::test_a_store_that_is_closed_is_free_though_a_fork_has_it_open",),
    ),
    Mutant(
        "a clock that is set frees locks",
        "zkv/engines/clock.py",
        "        return self._offset + time.clock_gettime(_CLOCK)",
        "        return time.time()",
        ("tests/test_expiry.py::test_a_clock_that_is_set_ends_and_stretches_nothing",),
    ),
    Mutant(
        "a clock that was set frees locks at the next start",
        "zkv/engines/local.py",
        "        ahead = 0.0 if mark is None else mark.ahead",
        "        ahead = 0.0",
        ("tests/test_expiry.py::test_a_clock_that_is_set_is_remembered_by_a_store_that_crashes",),
    ),
    Mutant(
        "a load makes for ever what was to expire",
        "zkv/cli/transfer.py",
        "    return None if entry.expires is None else max(",
        "    return None if True else max(",
        ("tests/test_cli_transfer.py::test_a_dump_says_when_keys_expire_and_load_keeps_it",),
    ),
    Mutant(
        "as many keys that hash alike as a peer likes",
        "zkv/values.py",
        "            if len(hashes) - len(set(hashes)) > ALIKE_MAX:",
        "            if False:",
        ("tests/test_values.py::test_keys_of_a_map_that_hash_alike_are_few",),
    ),
    Mutant(
        "keys that hash apart are not followed",
        "zkv/values.py",
        "            if len(hashes) > _FEW:",
        "            if False:",
        ("tests/test_values.py::test_collisions_count_in_all_maps_of_a_message",),
    ),
    Mutant(
        "collisions of each map count for itself",
        "zkv/values.py",
        "                left -= _collisions(",
        "                _collisions(",
        ("tests/test_values.py::test_collisions_count_in_all_maps_of_a_message",),
    ),
    Mutant(
        "a map in maps is read again for each of them",
        "zkv/values.py",
        '_EXACT = frozenset(("$i", "$f", "$m"))',
        '_EXACT = frozenset(("$i", "$f"))',
        (
            "tests/test_values.py"
            "::test_what_is_in_a_map_is_read_once_however_many_maps_are_round_it",
        ),
    ),
    Mutant(
        "as many bins as bytes allow",
        "zkv/values.py",
        "_IN_A_TAG = frozenset((bytes, msgpack.Timestamp))",
        "_IN_A_TAG = frozenset((msgpack.Timestamp,))",
        ("tests/test_server.py::test_arrays_maps_bins_and_exts_are_bounded_in_all",),
    ),
    Mutant(
        "what a block said is held while it is read again",
        "zkv/engines/line.py",
        '        if not block[-1].endswith(b"\\n"):',
        "        if False:",
        ("tests/test_journal.py::test_a_line_before_room_is_read_once",),
    ),
    Mutant(
        "keys are not followed where a str is not UTF-8",
        "zkv/protocol.py",
        'values.unpack_any(body, sent=True, unicode_errors="surrogateescape")',
        'values.unpack_any(body, unicode_errors="surrogateescape")',
        ("tests/test_server.py::test_keys_that_collide_are_refused_and_the_server_goes_on",),
    ),
    Mutant(
        "a header that lies has room made for items",
        "zkv/values.py",
        "    items_max = min(ITEMS_MAX, len(packed))",
        "    items_max = ITEMS_MAX",
        ("tests/test_values.py::test_a_header_that_lies_has_no_room_made_for_items",),
    ),
    Mutant(
        "an incr reads a value however large",
        "zkv/values.py",
        "    if len(packed) > _NUMBER_BYTES_MAX:",
        "    if False:",
        ("tests/test_service.py::test_an_operation_takes_steps_as_its_request_is_large",),
    ),
    Mutant(
        "a txn looks at its ops once for each of them",
        "zkv/operations.py",
        "        results.append(packed)",
        "        results.append(packed)\n        size = sum([len(it) for it in results])",
        ("tests/test_service.py::test_an_operation_takes_steps_as_its_request_is_large",),
    ),
    Mutant(
        "as many arrays and maps as bytes allow",
        "zkv/protocol.py",
        "        counts = _containers_of_fields(body)",
        "        counts: dict[str, int] = {}",
        ("tests/test_server.py::test_arrays_maps_bins_and_exts_are_bounded_in_all",),
    ),
    Mutant(
        "a call that waits for its turn is on the clock",
        "zkv/aio.py",
        "                await places.wait()\n",
        "                await asyncio.wait_for(places.wait(), self.timeout_s)\n",
        ("tests/test_aio.py::test_a_call_that_waits_for_its_turn_is_not_on_the_clock",),
    ),
    Mutant(
        "a cancelled write costs its session",
        "zkv/aio.py",
        "        except Error as error:\n            if ends_session(error):",
        "        except BaseException as error:\n"
        "            if not isinstance(error, Error) or ends_session(error):",
        ("tests/test_aio.py::test_cancelled_calls_cost_nothing_and_take_no_reply_of_others",),
    ),
    Mutant(
        "the last in line comes first",
        "zkv/places.py",
        "self._line.popleft()",
        "self._line.pop()",
        (
            "tests/test_aio.py::test_calls_that_wait_for_their_turn_are_done_first_come_first_served",
        ),
    ),
    Mutant(
        "a cancelled call gives its place away at once",
        "zkv/dealer.py",
        "                self._places.take_in_advance()",
        "                pass",
        ("tests/test_aio.py::test_a_cancelled_call_keeps_its_place_while_the_server_has_it",),
    ),
    Mutant(
        "a cancelled call keeps its place for good",
        "zkv/dealer.py",
        "            if call.caller_has_gone:",
        "            if False:",
        ("tests/test_aio.py::test_a_cancelled_call_gives_its_place_back_in_its_time",),
    ),
    Mutant(
        "a busy loop is taken for the server's silence",
        "zkv/dealer.py",
        "        if call.sent_late_at > call.timer.when():",
        "        if False:",
        ("tests/test_aio.py::test_a_loop_that_is_always_busy_makes_nothing_late",),
    ),
    Mutant(
        "a busy loop takes the time of a write",
        "zkv/exchange.py",
        "    if time.monotonic() >= deadline:",
        "    if False:",
        ("tests/test_aio.py::test_a_loop_that_is_always_busy_makes_nothing_late",),
    ),
    Mutant(
        "a client that is dropped keeps its sockets",
        "zkv/aio.py",
        "                self._loop.call_soon_threadsafe(_close_all, self._dealers)",
        "                pass",
        ("tests/test_aio.py::test_a_client_that_is_dropped_says_so_and_leaves_nothing",),
    ),
    Mutant(
        "a shortage of files says that nothing was sent",
        "zkv/aio.py",
        "                    await asyncio.sleep(min(CONNECT_AGAIN_S, wait_s))",
        '                    raise CannotConnect("") from None',
        (
            "tests/test_aio.py"
            "::test_a_shortage_of_files_that_comes_later_does_not_say_that_nothing_was_sent",
        ),
    ),
    Mutant(
        "a shortage of files is blamed on the server",
        "zkv/endpoint.py",
        "        if isinstance(error, OSError) and error.errno in _SHORTAGES:",
        "        if False:",
        ("tests/test_client.py::test_a_client_without_files_for_it_cannot_connect",),
    ),
    Mutant(
        "connections stay idle for good",
        "zkv/client.py",
        " or idle[0].used_at < long_ago",
        "",
        ("tests/test_client.py::test_threads_that_are_gone_leave_few_connections",),
    ),
    Mutant(
        "a store that is dropped keeps its folder",
        "zkv/embedded.py",
        '        threading.Thread(target=self._engine.close, name="zkv-close").start()',
        "        pass",
        ("tests/test_operators.py::test_a_store_that_is_dropped_says_so_and_frees_its_folder",),
    ),
    Mutant(
        "an overtaken session goes on",
        "zkv/exchange.py",
        "Stale | SessionLost",
        "SessionLost",
        (
            "tests/test_client.py"
            "::test_a_client_whose_session_was_overtaken_says_so_once_and_goes_on",
        ),
    ),
    Mutant(
        "a thread that is gone leaves its connection",
        "zkv/client.py",
        "IDLE_MAX: Final = 32",
        "IDLE_MAX: Final = 1000",
        ("tests/test_client.py::test_threads_that_are_gone_leave_few_connections",),
    ),
    Mutant(
        "a defect of an operation ends its worker",
        "zkv/engines/local.py",
        "        except BaseException as error:  # even SystemExit",
        "        except Error as error:  #",
        ("tests/test_engines.py::TestContract::test_whatever_an_operation_raises_is_its_outcome",),
    ),
    Mutant(
        "a segment that cannot be had is a failed disk",
        "zkv/engines/journal.py",
        "        except OSError as error:\n            with suppress(OSError):\n",
        "        except KeyError as error:\n            with suppress(OSError):\n",
        ("tests/test_shortage.py::test_a_shortage_fails_a_compaction_and_nothing_else",),
    ),
    Mutant(
        "a half-made segment stays",
        "zkv/engines/journal.py",
        "                self._disk.unlink(self._half_made)",
        "                pass",
        ("tests/test_shortage.py::test_a_shortage_fails_a_compaction_and_nothing_else",),
    ),
    Mutant(
        "a segment is ended before there is another",
        "zkv/engines/journal.py",
        "            self._remove_half_made()\n            first",
        "            self._write_footer()\n            self._remove_half_made()\n            first",
        ("tests/test_crash_simulation.py",),
    ),
    Mutant(
        "what waits leaves the queue before it is written",
        "zkv/engines/journal.py",
        "            batch = max(self._synced + 1, self._segment.first)\n",
        "            batch = max(self._synced + 1, self._segment.first)\n"
        "            pending.clear()\n",
        ("tests/test_shortage.py::test_a_write_that_no_memory_was_left_for_goes_with_the_next",),
    ),
    Mutant(
        "what was written is written again",
        "zkv/engines/journal.py",
        "        while pending and pending[0].revision <= self._written:  #",
        "        while False:  #",
        ("tests/test_shortage.py::test_a_journal_goes_on_wherever_it_was_broken_off",),
    ),
    Mutant(
        "a segment that was ended is written to",
        "zkv/engines/journal.py",
        "        if self._next is not None:\n            self._end_segment()\n",
        "",
        ("tests/test_shortage.py::test_a_journal_goes_on_wherever_it_was_broken_off",),
    ),
    Mutant(
        "revisions are given out beyond what was reserved",
        "zkv/engines/local.py",
        "        if self._table.next_revision > self._journal.reserved:",
        "        if False:",
        ("tests/test_shortage.py::test_revisions_are_not_given_out_beyond_what_was_reserved",),
    ),
    Mutant(
        "another segment is tried for once",
        "zkv/engines/journal.py",
        "                self._rotate_after += RESERVED // 16",
        "                self._rotate_after += RESERVED",
        ("tests/test_shortage.py::test_another_segment_is_there_before_it_is_needed",),
    ),
    Mutant(
        "what is reserved is used up before the keeper looks",
        "zkv/engines/journal.py",
        "            if self._half_reserved():",
        "            if False:",
        ("tests/test_shortage.py::test_revisions_are_not_given_out_beyond_what_was_reserved",),
    ),
    Mutant(
        "the footer before an empty segment is taken for synced",
        "zkv/engines/recovery.py",
        "ends = [*ends[-1:], segment] if segment.empty else [segment]",
        "ends = [segment]",
        ("tests/test_disk_errors.py::test_a_failing_call_is_never_an_acknowledgement",),
    ),
    Mutant(
        "a segment that was left over is damage",
        "zkv/engines/recovery.py",
        "        if ends and _is_left_over(",
        "        if False and _is_left_over(",
        ("tests/test_crash_simulation.py",),
    ),
    Mutant(
        "a header proves nothing of what comes before it",
        "zkv/engines/recovery.py",
        'header["rev"] <= revision + (not before.closed)',
        "True",
        ("tests/test_journal.py::test_the_header_of_an_empty_segment_proves_what_comes_before_it",),
    ),
    Mutant(
        "a compaction that failed goes on beside the next",
        "zkv/engines/local.py",
        "                failed.kill()",
        "                pass",
        ("tests/test_shortage.py::test_a_compaction_whose_end_is_not_learned_of_is_ended",),
    ),
    Mutant(
        "a snapshot that cannot be opened is a defect",
        "zkv/engines/local.py",
        '        except OSError as error:\n            raise Unavailable(f"{name} cannot',
        '        except KeyError as error:\n            raise Unavailable(f"{name} cannot',
        ("tests/test_shortage.py::test_a_snapshot_that_cannot_be_opened_is_unavailable",),
    ),
    Mutant(
        "a start without files is a failed disk",
        "zkv/engines/local.py",
        "kind = Shortage if error.errno in SHORTAGES else DiskFailed",
        "kind = DiskFailed",
        ("tests/test_shortage.py::test_a_start_without_files_is_told_from_a_failed_disk",),
    ),
    Mutant(
        "a defect is blamed on the disk",
        "zkv/__main__.py",
        "    if not isinstance(cause, OSError):",
        "    if False:",
        ("tests/test_shortage.py::test_a_journal_that_cannot_go_on_by_a_defect_is_exit_70",),
    ),
    Mutant(
        "a reply that no memory is left for ends the server",
        "zkv/service.py",
        "        except MemoryError:\n",
        "        except KeyError:\n",
        ("tests/test_shortage.py::test_a_reply_that_no_memory_is_left_for_is_one_that_says_so",),
    ),
    Mutant(
        "a stop waits for the load",
        "zkv/signals.py",
        "                elif not self._held:",
        "                elif self._exit_code is None and not self._held:",
        ("tests/test_signals.py::test_a_start_ends_at_once",),
    ),
    Mutant(
        "a check that was broken off is good",
        "zkv/__main__.py",
        "Signals(None if named else 0)",
        "Signals(0)",
        ("tests/test_signals.py::test_what_was_not_looked_through_is_not_said_to_be_good",),
    ),
    Mutant(
        "a repair can be broken off halfway",
        "zkv/__main__.py",
        ", before_change=signals.hold)",
        ")",
        ("tests/test_signals.py::test_a_repair_that_has_begun_to_change_the_folder_goes_on",),
    ),
    Mutant(
        "a second signal ends nothing",
        "zkv/signals.py",
        "                    self._serving = False\n",
        "",
        ("tests/test_signals.py::test_a_second_signal_ends_it_at_once",),
    ),
    Mutant(
        "a server stops though it runs under nohup",
        "zkv/signals.py",
        "{*STOP_SIGNALS} - ignored",
        "{*STOP_SIGNALS}",
        ("tests/test_signals.py::test_nohup_keeps_a_server_alive",),
    ),
    Mutant(
        "a hangup ends a server without a clean stop",
        "zkv/signals.py",
        "signal.SIGINT, signal.SIGHUP)",
        "signal.SIGINT)",
        ("tests/test_signals.py::test_a_server_stops_cleanly",),
    ),
)


def main() -> int:
    args = _arguments()
    chosen = [mutant for mutant in MUTANTS if not args.only or mutant.name in args.only]
    with tempfile.TemporaryDirectory(prefix="zkv-mutants-") as home:
        original = _copy(ROOT, Path(home, "original"))
        for mutant in chosen:
            _mutated(mutant, original)
            if args.list:
                print(mutant.name)
        return 0 if args.list else _run(chosen, original)


def _run(chosen: list[Mutant], original: Path) -> int:
    """Prints a line of the table for each; returns the exit code."""
    there = Path(sys.prefix) == VENV and importlib.util.find_spec("pytest")
    python = sys.executable if there else python_with("test", "bench")
    tests = dict.fromkeys(test for mutant in chosen for test in mutant.tests)
    code, output = _pytest(tests, python, original)
    if code != PASSED:
        sys.exit(f"{output}the tests do not pass without a mutant")
    escaped = 0
    for mutant in chosen:
        started = time.monotonic()
        caught = _is_caught(mutant, python, original)
        escaped += not caught
        verdict = "caught" if caught else "ESCAPED"
        print(f"{verdict:8} {time.monotonic() - started:4.0f} s  {mutant.name}", flush=True)
    print(f"{len(chosen) - escaped} of {len(chosen)} caught")
    return 1 if escaped else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Shows that the tests can fail.")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=[mutant.name for mutant in MUTANTS]
    )
    parser.add_argument("--list", action="store_true", help="print the names, and run nothing")
    return parser.parse_args()


def _is_caught(mutant: Mutant, python: str, original: Path) -> bool:
    folder = _copy(original, original.with_name("mutant"))
    try:
        (folder / mutant.file).write_text(_mutated(mutant, original))
        code, output = _pytest(mutant.tests, python, folder)
    finally:
        shutil.rmtree(folder)
    if code not in (PASSED, FAILED):
        sys.exit(f"{output}{mutant.name}: pytest ended with {code}")
    return code == FAILED


def _mutated(mutant: Mutant, original: Path) -> str:
    source = (original / mutant.file).read_text()
    if (times := source.count(mutant.text)) != 1:
        sys.exit(f"{mutant.name}: {mutant.file} has its text {times} times, not once")
    return source.replace(mutant.text, mutant.instead)


def _copy(source: Path, folder: Path) -> Path:
    """Copies zkv and its tests, as sources only, to a new folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("zkv", "tests"):
        shutil.copytree(source / part, folder / part, ignore=ignored)
    shutil.copy(source / "pyproject.toml", folder)
    return folder


def _pytest(tests: Iterable[str], python: str, folder: Path) -> tuple[int, str]:
    """Runs these tests in a copy; returns pytest's exit code and the end of what it said."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [python, "-c", "import importlib.util as u; print(u.find_spec('zkv').origin)"]
    found = subprocess.check_output(where, cwd="/", env=environment, text=True).strip()
    if found != str(folder / "zkv" / "__init__.py"):
        sys.exit(f"the tests would run on {found}, not on the copy in {folder}")
    command = [python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = FAILED
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        return code, output.read()[-5000:]


if __name__ == "__main__":
    sys.exit(main())
