"""Bybit's subscriptions: what a client may say on a public connection, and what it is answered.

Source: venues/bybit.md, sections 2, 4 and 5; the answers to what is no request, and the spot wording of an
unknown topic, as clients of 2022 to 2026 quote them. v2: the recordings of 2021.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson

from replay.venue import Form, Violation

MAX_CHARACTERS = 21_000  # of all topics of a connection
MAX_TOPICS_AT_ONCE = 500  # more in one request have closed connections


class Words(NamedTuple):
    """How one category answers.

    ack              ret_msg of a subscription that is accepted
    unknown          ret_msg of one that names a topic which does not exist
    topics_at_once   of a request, and 0: as many as fit
    topics           of a connection, and 0: as many as fit
    by_topic         requests are answered topic by topic, without a number
    """

    ack: str = ""
    unknown: str = "error:handler not found,topic:%s"
    topics_at_once: int = 0
    topics: int = 0
    by_topic: bool = False


WORDS = {
    "spot": Words(ack="subscribe", unknown="Invalid symbol :[%s]", topics_at_once=10),
    "linear": Words(),
    "inverse": Words(),
    "option": Words(topics=2_000, by_topic=True),
}


class _Error(Exception):
    """What a request is refused with."""


class BybitSession:
    """One connection's subscriptions in v5.

    market   category
    number   of the connection
    resolve  topic -> stream number, None for what does not exist
    form     (stream, topic) -> how a recorded message becomes this connection's
    first    (stream, topic) -> what a subscriber is sent at once
    """

    def __init__(
        self,
        market: str,
        number: int,
        resolve: Callable[[str], int | None],
        form: Callable[[int, str], Form],
        first: Callable[[int, str], list[bytes]],
    ) -> None:
        self._market = market
        self._words = WORDS[market]
        self._id = f"d6ki1eae0cl5msgg{number:04}-{number:05}"
        self._topics: dict[str, int] = {}
        self._resolve = resolve
        self._form = form
        self._first = first

    @property
    def subscribed(self) -> bool:
        """Return whether any topic is subscribed."""
        return bool(self._topics)

    def wanted(self) -> Iterator[tuple[int, Form]]:
        """Yield the streams to send, and in which form."""
        for topic, stream in self._topics.items():
            yield stream, self._form(stream, topic)

    def farewell(self, now_ns: int) -> list[bytes]:  # noqa: ARG002  (the same for every venue)
        """Return nothing: the venue does not announce on a connection that it ends."""
        return []

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return the answer and what new topics begin with. Raises Violation."""
        try:
            request = orjson.loads(message)
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict):
            found = str(message)[:1] or "\\x00"
            return [
                self._refusal(
                    {}, f"Failed to decode incoming data:readObjectStart: expect {{ or n, but found {found}"
                )
            ]
        match request.get("op"):
            case "ping":
                return [self._pong(request)]
            case "subscribe" | "unsubscribe":
                topics = request.get("args")
                if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
                    return [self._refusal(request, "error:invalid args")]
                return self._change(request, topics)
        return [self._refusal(request, "error:invalid op")]

    def _change(self, request: dict[str, Any], topics: list[str]) -> list[bytes]:
        if len(topics) > MAX_TOPICS_AT_ONCE:
            raise Violation(f"{len(topics)} topics in a request, expected at most {MAX_TOPICS_AT_ONCE}")
        subscribing = request["op"] == "subscribe"
        good = [topic for topic in topics if not subscribing or not self._problem(topic)]
        try:
            if subscribing:
                self._check(topics)
            if len(good) < len(topics) and not self._words.by_topic:
                raise _Error(self._problem(next(topic for topic in topics if topic not in good)))
        except _Error as error:
            return [self._refusal(request, str(error))]
        first: list[bytes] = []
        for topic in good:
            if not subscribing:
                self._topics.pop(topic, None)
            elif (stream := self._resolve(topic)) is not None:
                self._topics[topic] = stream
                first += self._first(stream, topic)
        return [self._ack(request, good, topics), *first]

    def _problem(self, topic: str) -> str:
        """Return why a topic cannot be subscribed, "" if it can."""
        if topic in self._topics:
            return f"error:already subscribed,topic:{topic}"
        return "" if self._resolve(topic) is not None else self._words.unknown % topic

    def _check(self, topics: list[str]) -> None:
        """Refuse more than a request or a connection may hold."""
        words = self._words
        if words.topics_at_once and len(topics) > words.topics_at_once:
            raise _Error(f"args size >{words.topics_at_once}")
        if words.topics and len(self._topics) + len(topics) > words.topics:
            raise _Error(f"args size >{words.topics}")
        if sum(map(len, (*self._topics, *topics))) > MAX_CHARACTERS:
            raise _Error(f"args length >{MAX_CHARACTERS}")

    # answers

    def _ack(self, request: dict[str, Any], good: list[str], topics: list[str]) -> bytes:
        if self._words.by_topic:
            bad = [topic for topic in topics if topic not in good]
            data = {"failTopics": bad, "successTopics": good}
            return orjson.dumps(
                {"success": not bad, "conn_id": self._id, "data": data, "type": "COMMAND_RESP"}
            )
        return self._say(request, self._words.ack if request["op"] == "subscribe" else "", success=True)

    def _pong(self, request: dict[str, Any]) -> bytes:
        if self._words.by_topic:
            return orjson.dumps({"args": [str(time.time_ns() // 1_000_000)], "op": "pong"})
        said: dict[str, object] = {"success": True, "ret_msg": "pong", "conn_id": self._id}
        if self._market != "spot" or "req_id" in request:
            said["req_id"] = request.get("req_id", "")
        return orjson.dumps({**said, "op": "ping"})

    def _refusal(self, request: dict[str, Any], text: str) -> bytes:
        return self._say(request, text, success=False)

    def _say(self, request: dict[str, Any], text: str, *, success: bool) -> bytes:
        said = {"success": success, "ret_msg": text, "conn_id": self._id}
        return orjson.dumps({**said, "req_id": request.get("req_id", ""), "op": request.get("op", "")})


class BybitSessionV2(BybitSession):
    """One connection's subscriptions in v2: what is asked for is repeated in the answer, which comes last."""

    def _change(self, request: dict[str, Any], topics: list[str]) -> list[bytes]:
        answer, *first = super()._change(request, topics)
        return [*first, answer]

    def _ack(self, request: dict[str, Any], good: list[str], topics: list[str]) -> bytes:  # noqa: ARG002
        return self._say(request, "", success=True)

    def _pong(self, request: dict[str, Any]) -> bytes:
        return self._say({"op": "ping", "args": request.get("args")}, "pong", success=True)

    def _say(self, request: dict[str, Any], text: str, *, success: bool) -> bytes:
        said = {"success": success, "ret_msg": text, "conn_id": self._id, "request": request}
        return orjson.dumps(said)
