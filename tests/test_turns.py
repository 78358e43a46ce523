"""Connections take turns: nobody waits for another's burst, and no request changes its place in
its connection's order.
"""

from __future__ import annotations

from collections.abc import Container

from zkv.turns import Turns

MANY = 10**9


def added(turns: Turns, *names: str) -> Turns:
    """The same turns, with a request for each name; bodies count from 0."""
    first = turns.requests
    envelopes = [[name.encode(), b"frame"] for name in names]
    turns.add(envelopes, [b"%d" % (first + at) for at in range(len(names))])
    return turns


def take(turns: Turns, requests_max: int = 64, held: Container[bytes] = ()) -> list[str]:
    """The connection and the body of each request taken."""
    envelopes, bodies = turns.take(requests_max, MANY, held)
    assert all(envelope[1:] == [b"frame"] for envelope in envelopes)
    pairs = zip(envelopes, bodies, strict=True)
    return [f"{envelope[0].decode()}{body.decode()}" for envelope, body in pairs]


def test_turns_take_one_request_of_each_connection() -> None:
    turns = added(Turns(), *"aaaabbc")
    assert take(turns) == ["a0", "b4", "c6", "a1", "b5", "a2", "a3"]
    assert (turns.requests, turns.bytes) == (0, 0)


def test_turns_go_on_where_they_were() -> None:
    turns = added(Turns(), *"aaabbbccc")
    assert take(turns, 2) == ["a0", "b3"]
    assert take(turns, 2) == ["c6", "a1"]


def test_a_newcomer_waits_for_one_request_of_each_connection() -> None:
    turns = added(Turns(), *"a" * 100, *"b" * 100)
    take(turns, 10)
    added(turns, "c")
    assert take(turns, 3)[-1].startswith("c")


def test_requests_that_are_put_back_are_next_and_in_order() -> None:
    turns = added(Turns(), *"aabbc")
    envelopes, bodies = turns.take(64, MANY, ())
    turns.put_back(envelopes[1:], bodies[1:])  # b c a b
    assert (turns.requests, turns.bytes) == (4, 4)
    assert take(turns) == ["b2", "c4", "a1", "b3"]


def test_turns_put_back_before_what_came_meanwhile() -> None:
    turns = added(Turns(), *"ab")
    envelopes, bodies = turns.take(64, MANY, ())
    added(turns, *"ca")
    turns.put_back(envelopes, bodies)
    assert take(turns) == ["a0", "b1", "c0", "a1"]


def test_a_held_connection_waits_alone_and_keeps_its_turn() -> None:
    turns = added(Turns(), *"aabb")
    assert take(turns, held={b"a"}) == ["b2", "b3"]
    assert (turns.waiting(b"a"), turns.waiting(b"b")) == (2, 0)
    added(turns, *"b")
    assert take(turns, 1) == ["a0"]


def test_turns_end_a_batch_with_the_body_that_brings_it_over_the_limit() -> None:
    turns = Turns()
    turns.add([[b"a"], [b"b"], [b"c"]], [bytes(6), bytes(6), bytes(6)])
    assert turns.take(64, 10, ())[1] == [bytes(6), bytes(6)]
    assert turns.bytes == 6


def test_turns_give_up_all_of_a_connection() -> None:
    turns = added(Turns(), *"aabbc")
    assert turns.drop([b"a", b"c", b"none"]) == 3
    assert (turns.requests, turns.bytes) == (2, 2)
    assert take(turns) == ["b2", "b3"]
    assert turns.drop([b"b"]) == 0
