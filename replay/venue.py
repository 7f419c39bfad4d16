"""What every stand-in offers to the server that carries it. One file per venue implements it."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple, Protocol, runtime_checkable

from replay.script import Play

#: makes the message a connection gets out of the recorded one; None sends it as recorded
Form = Callable[[bytes], bytes] | None


class Rules(NamedTuple):
    """A venue's limits on a connection."""

    messages_per_s: int  # from the client, ping and pong frames included
    ping_every_s: float  # the server's own pings; infinite where it sends none
    pong_within_s: float  # infinite where it waits for none
    lifetime_s: float
    pong_echoes: bool  # whether only a pong with the payload of a ping keeps the link alive
    attempts_per_5min: int | None  # handshakes of one client; None: no limit
    idle_s: float = inf  # a connection whose client says nothing for so long is closed
    connections: int | None = None  # open at the same time; the next handshake gets a 429; None: no limit


class Posted(NamedTuple):
    """A REST call by POST.

    authorized  False while a fault lets the venue know neither key nor token
    """

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # by lower-case name
    body: bytes
    authorized: bool = True


class Answer(NamedTuple):
    """A REST answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


class Refused(Exception):
    """A handshake that is not accepted."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


class Violation(Exception):
    """What a client did, or left undone, after which the venue closes the connection.

    code  of the close frame
    last  messages that are sent before
    """

    def __init__(self, text: str, code: int = 1008, last: Sequence[bytes] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.last = last


@runtime_checkable
class Postbox(Protocol):
    """What a stand-in offers besides where its venue takes POST; elsewhere POST is answered as GET is."""

    async def post(self, call: Posted, client: str, now_ns: int) -> Answer:
        """Answer a POST of `client` at recording time `now_ns` (since the epoch)."""


class Session(Protocol):
    """The venue's end of one connection."""

    @property
    def subscribed(self) -> bool:
        """Return whether any stream, known or not, is subscribed."""

    def receive(self, message: str | bytes) -> list[bytes]:
        """Take a client's message, return the answers. Raises Violation."""

    def wanted(self) -> Iterable[tuple[int, Form]]:
        """Yield the streams to send, and in which form. Equal forms are the same object."""

    def farewell(self, now_ns: int) -> list[bytes]:
        """Return what the venue says at `now_ns` (since the epoch) before maintenance ends the connection."""


@runtime_checkable
class Speaking(Protocol):
    """A session that speaks without being asked: heartbeats of its own, news."""

    def due(self, now_s: float) -> list[bytes]:
        """Return what it says at `now_s`, a clock that never goes back; asked each second.

        Raises Violation for a client that left something undone.
        """


@runtime_checkable
class Counting(Protocol):
    """What a stand-in offers besides whose venue counts a connection's messages, whatever they are about.

    They are counted as the play takes them, before any fault: a message that is lost leaves a hole.
    """

    def withheld(self, stream: int) -> None:
        """Take back the number of the message of `stream` that was played last: the venue never said it."""


class StandIn(Protocol):
    """A venue's protocol over one recording. Streams are numbers of its `play`."""

    venue: str
    market: str
    protocol: str  # the version of the venue's protocol spoken: selects the decoder
    instruments: str  # "recorded" or "derived"
    streams: Sequence[str]  # names a feeder may ask for: those of the play, and REST answers by such a name
    rules: Rules
    binary: bool  # whether its WebSocket frames are binary
    play: Play
    start_ns: int  # receive time of the recording's first message, since the epoch

    def connect(self, target: str) -> Session:
        """Return the session of a handshake for `target`, path and query. Raises Refused."""

    async def rest(self, path: str, query: Mapping[str, str], client: str, now_ns: int) -> Answer:
        """Answer a GET of `client` at recording time `now_ns` (since the epoch)."""

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429, 418 or 503."""

    def restart_numbers(self, streams: Collection[int]) -> None:
        """Let the venue's numbers begin anew in `streams` and in REST answers about their symbols."""

    def renumbered(self, stream: int, payload: bytes) -> bytes:
        """Return a message with the numbers of the last restart."""

    def shifted(self, payload: bytes, shift_ms: int) -> bytes:
        """Return a message with its times moved."""

    def delist(self, streams: Collection[int]) -> Sequence[int]:
        """Delist the symbols of `streams`; return all their streams."""

    def rewind(self) -> None:
        """Begin the recording anew, as after a reset of the venue."""
