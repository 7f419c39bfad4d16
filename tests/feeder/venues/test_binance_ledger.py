"""Requests to the venue: never too many, open until acknowledged, split until the bad stream is alone."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.batch import VenueError
from feeder.venues.binance_ledger import ACK_DEADLINE_NS, STREAMS_PER_REQUEST, Ledger
from feeder.venues.binance_messages import Reply

S = 1_000_000_000
NOW = 1_700_000_000 * S


def reply(text: str) -> Reply:
    return msgspec.json.decode(text, type=Reply)


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
            if self.unknown & set(said["params"]):
                text = f'{{"error":{{"code":2,"msg":"Invalid request"}},"id":{said["id"]}}}'
            else:
                text = f'{{"result":null,"id":{said["id"]}}}'
            outcome = self.ledger.settle(reply(text))
            self.flowing += outcome.flowing
            self.refused += outcome.refused


def test_a_request_is_open_until_it_is_acknowledged() -> None:
    ledger = Ledger(5)
    ledger.ask("SUBSCRIBE", ["a@trade", "b@trade"])
    assert not ledger.complete
    (message,) = ledger.take(0)
    assert json.loads(message) == {"method": "SUBSCRIBE", "params": ["a@trade", "b@trade"], "id": 1}
    assert not ledger.complete
    ledger.settle(reply('{"result":null,"id":7}'))
    assert not ledger.complete
    assert list(ledger.settle(reply('{"result":null,"id":1}')).flowing) == ["a@trade", "b@trade"]
    assert ledger.complete
    ledger.ask("UNSUBSCRIBE", ["a@trade"])
    ledger.take(NOW)
    assert ledger.complete  # what comes later opens no question about the beginning


@pytest.mark.parametrize("per_s", [2, 5])
def test_never_more_messages_than_the_venue_takes(per_s: int) -> None:
    ledger = Ledger(per_s)
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
    ledger = Ledger(5)
    ledger.ask("SUBSCRIBE", ["a", "b"])
    ledger.take(0)
    assert ledger.overdue(NOW) == 0
    assert ledger.overdue(NOW + ACK_DEADLINE_NS) == 0
    assert ledger.overdue(NOW + ACK_DEADLINE_NS + 1) == 1
    assert ledger.overdue(NOW + 2 * ACK_DEADLINE_NS) == 0


def test_a_refusal_that_belongs_to_no_subscription_is_an_error() -> None:
    ledger = Ledger(5)
    for text in ('{"code":3,"msg":"Invalid JSON"}', '{"error":{"code":2,"msg":"no"},"id":4}'):
        with pytest.raises(VenueError, match="refused"):
            ledger.settle(reply(text))
    ledger.ask("UNSUBSCRIBE", ["a"])
    ledger.take(NOW)
    with pytest.raises(VenueError, match="refused"):
        ledger.settle(reply('{"code":2,"msg":"no","id":1}'))


@given(st.integers(1, 450), st.data())
def test_bad_streams_are_found_and_the_rest_flows(n_streams: int, data: st.DataObject) -> None:
    streams = [f"s{n}" for n in range(n_streams)]
    unknown = data.draw(st.sets(st.sampled_from(streams), max_size=4))
    ledger = Ledger(5)
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
