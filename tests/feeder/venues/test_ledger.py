"""Requests to the venue: never too many, open until acknowledged, split until the bad stream is alone."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.venues.ledger import ACK_DEADLINE_NS, Ledger
from feeder.venues.pool import Pool

S = 1_000_000_000
NOW = 1_700_000_000 * S


STREAMS_PER_REQUEST = 200


def request(method: str, streams: Any, number: int) -> bytes:
    return json.dumps({"method": method, "params": list(streams), "id": number}).encode()


def new_ledger(per_s: int) -> Ledger:
    return Ledger(request, per_s=per_s)


class Venue:
    """Acknowledges what it knows, refuses a request as a whole."""

    def __init__(self, ledger: Ledger, unknown: set[str]) -> None:
        self.ledger, self.unknown = ledger, unknown
        self.flowing: list[str] = []
        self.refused: list[str] = []
        self.requests = 0

    def take(self, messages: list[bytes]) -> None:
        for message in messages:
            said: dict[str, Any] = json.loads(message)
            self.requests += 1
            assert said["method"] == "SUBSCRIBE"
            assert 0 < len(said["params"]) <= STREAMS_PER_REQUEST
            refused = bool(self.unknown & set(said["params"]))
            outcome = self.ledger.settle(said["id"], refused=refused)
            self.flowing += outcome.flowing
            self.refused += outcome.refused


def test_a_request_is_open_until_it_is_acknowledged() -> None:
    ledger = new_ledger(5)
    ledger.ask("SUBSCRIBE", ["a@trade", "b@trade"])
    assert not ledger.complete
    (message,) = ledger.take(0)
    assert json.loads(message) == {"method": "SUBSCRIBE", "params": ["a@trade", "b@trade"], "id": 1}
    assert not ledger.complete
    assert ledger.settle(7).unasked
    assert not ledger.complete
    assert list(ledger.settle(1).flowing) == ["a@trade", "b@trade"]
    assert ledger.complete
    ledger.ask("UNSUBSCRIBE", ["a@trade"])
    ledger.take(NOW)
    assert ledger.complete  # what comes later opens no question about the beginning


@pytest.mark.parametrize("per_s", [2, 5])
def test_never_more_messages_than_the_venue_takes(per_s: int) -> None:
    ledger = new_ledger(per_s)
    ledger.ask("SUBSCRIBE", [f"s{n}@trade" for n in range(1024)])
    sent = [(0, message) for message in ledger.take(0)]
    assert len(sent) == per_s
    now = NOW
    while len(sent) < math.ceil(1024 / STREAMS_PER_REQUEST):
        sent += [(now - NOW, message) for message in ledger.take(now)]
        now += S // 4
        assert now < NOW + 10 * S
    times = [at for at, _ in sent]
    for at in times:
        assert sum(at <= other < at + S for other in times[per_s:]) <= per_s
    assert times[per_s] >= S  # the first ones may have gone out just before the first tick
    assert sum(len(json.loads(message)["params"]) for _, message in sent) == 1024


def test_what_is_not_answered_in_time_is_given_up_and_counted_once() -> None:
    ledger = new_ledger(5)
    ledger.ask("SUBSCRIBE", ["a", "b"])
    ledger.take(0)
    assert ledger.overdue(NOW) == 0
    assert ledger.overdue(NOW + ACK_DEADLINE_NS) == 0
    assert ledger.overdue(NOW + ACK_DEADLINE_NS + 1) == 1
    assert ledger.overdue(NOW + 2 * ACK_DEADLINE_NS) == 0


def test_a_refusal_that_belongs_to_no_subscription_is_told() -> None:
    ledger = new_ledger(5)
    assert ledger.settle(None, refused=True).unasked
    assert ledger.settle(4, refused=True).unasked
    ledger.ask("UNSUBSCRIBE", ["a"])
    ledger.take(NOW)
    assert ledger.settle(1, refused=True).unasked


def test_streams_that_are_acknowledged_one_by_one() -> None:
    ledger = new_ledger(5)
    ledger.ask("SUBSCRIBE", ["a", "b", "c"])
    ledger.take(0)
    assert ledger.settle_streams(["a"]).flowing == ["a"]
    assert ledger.settle_streams([], ["b"]).refused == ["b"]
    assert not ledger.complete
    assert ledger.settle_streams(["a"]).unasked  # twice, or never asked for
    assert ledger.settle_streams(["c"]).flowing == ["c"]
    assert ledger.complete
    assert ledger.overdue(NOW) == 0


@given(st.integers(1, 450), st.data())
def test_bad_streams_are_found_and_the_rest_flows(n_streams: int, data: st.DataObject) -> None:
    streams = [f"s{n}" for n in range(n_streams)]
    unknown = data.draw(st.sets(st.sampled_from(streams), max_size=4))
    ledger = new_ledger(5)
    venue = Venue(ledger, unknown)
    ledger.ask("SUBSCRIBE", streams)
    venue.take(ledger.take(0))
    now = NOW
    for _ in range(100):
        if ledger.complete:
            break
        venue.take(ledger.take(now))
        now += S
    assert ledger.complete
    assert sorted(venue.refused) == sorted(unknown)
    assert sorted(venue.flowing) == sorted(set(streams) - unknown)
    assert venue.requests <= math.ceil(n_streams / STREAMS_PER_REQUEST) + 2 * len(unknown) * 9


def test_the_stream_that_the_venue_names_is_taken_out_and_the_rest_asked_again_at_once() -> None:
    ledger = new_ledger(10)
    ledger.ask("SUBSCRIBE", ["a", "bad", "b", "worse", "c"])
    (first,) = ledger.take(NOW)
    assert ledger.settle(json.loads(first)["id"], refused=True, culprit="bad").refused == ("bad",)
    (second,) = ledger.take(NOW)
    assert json.loads(second)["params"] == ["a", "b", "worse", "c"]
    ledger.settle(json.loads(second)["id"], refused=True, culprit="worse")
    (third,) = ledger.take(NOW)
    assert not ledger.complete
    assert ledger.settle(json.loads(third)["id"]).flowing == ["a", "b", "c"]
    assert ledger.complete
    ledger.ask("SUBSCRIBE", ["d", "e"])
    (fourth,) = ledger.take(NOW)
    ledger.settle(json.loads(fourth)["id"], refused=True, culprit="never asked")
    assert [json.loads(half)["params"] for half in ledger.take(NOW)] == [["d"], ["e"]]


def test_what_the_venue_does_not_list_is_refused() -> None:
    ledger = new_ledger(5)
    ledger.ask("SUBSCRIBE", ["a", "b", "c"])
    ledger.take(0)
    outcome = ledger.settle(1, accepted={"c", "a", "z"})
    assert (list(outcome.flowing), list(outcome.refused), outcome.unasked) == (["a", "c"], ["b"], False)
    assert ledger.complete


@pytest.mark.parametrize("refused", [False, True])
def test_what_was_left_is_told_whether_the_venue_knew_it_or_not(refused: bool) -> None:
    ledger = new_ledger(5)
    ledger.ask("UNSUBSCRIBE", ["a", "b"])
    ledger.take(NOW)
    outcome = ledger.settle(1, refused=refused)
    assert (list(outcome.left), list(outcome.flowing), outcome.unasked) == (["a", "b"], [], refused)


def test_connections_of_an_address_share_a_pool() -> None:
    pool = Pool(3, 1.0)
    ledgers = [Ledger(request, per_s=10, pool=pool) for _ in range(2)]
    for ledger in ledgers:
        ledger.ask("SUBSCRIBE", ["a"] * 2 * STREAMS_PER_REQUEST)
    assert [len(ledger.take(NOW)) for ledger in ledgers] == [2, 1]
    assert [len(ledger.take(NOW + S)) for ledger in ledgers] == [0, 1]
