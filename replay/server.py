"""The server under every stand-in: two ports on loopback, one clock, one walk through the recording."""

import asyncio
import functools
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Collection, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from replay.clock import Clock
from replay.connection import Connection, frame
from replay.faults import Faults, FaultsFile
from replay.script import Message
from replay.venue import Answer, Form, Postbox, Posted, Refused, Speaking, StandIn, Violation
from replay.weights import Attempts

HOST = "127.0.0.1"
SOURCE_HEADER = "X-Tapecast-Source"

#: subscriptions that have been quiet for so long start the clock
QUIET_S = 0.25
#: unpaced, how long the clock waits for a client to come back when the last one was lost
RETURN_S = 10.0
#: messages between two looks at the sockets
_BATCH = 256
#: the event loop's timers count in milliseconds: a shorter wait would spin
_TICK_S = 0.001
#: so messages are sent up to half a tick early rather than up to one late
_SLACK_NS = 500_000
_WRITE_LIMIT = 1024 * 1024
#: a client's time to answer the close frame when the stand-in ends
_CLOSE_S = 1.0
_HTTP_OF = {"unauthorized": 401, "429": 429, "418": 418, "maintenance": 503}


class _Refusal:
    """Requests of one kind to be refused: so many, or until a time, or for good."""

    def __init__(self, requests: int | None, seconds: float | None) -> None:
        self._left = math.inf if requests is None else requests
        self._until_s = math.inf if seconds is None else time.monotonic() + seconds

    def retry_after_s(self) -> int:
        """Take one request; return after how many seconds to try again, 0 if it is not refused."""
        remaining_s = self._until_s - time.monotonic()
        if self._left == 0 or remaining_s <= 0:
            return 0
        self._left -= 1
        return 1 if math.isinf(remaining_s) else math.ceil(remaining_s)


class Server:
    """A stand-in on its sockets.

    marked  whether handshakes and answers carry `X-Tapecast-Source: replay`
    hold    whether the clock waits to be started by POST, however quiet subscriptions are
    lifetime_s  how long a connection lives; None: as long as the venue's do
    messages    of the recording that were played
    delivered   handed to connections, those of faults among them; what a cut connection had yet to send, too
    Raises faults.FaultsError for faults that do not fit the recording.
    """

    def __init__(
        self,
        standin: StandIn,
        speed: float,
        faults: FaultsFile | None,
        seed: int,
        *,
        marked: bool,
        hold: bool = False,
        lifetime_s: float | None = None,
    ) -> None:
        self.standin = standin
        rules = standin.rules
        self._rules = rules if lifetime_s is None else rules._replace(lifetime_s=lifetime_s)
        self._frame = functools.partial(frame, binary=standin.binary)
        self._attempts = Attempts(rules.attempts_per_5min)
        self.clock = Clock(speed)
        self.messages = 0
        self.delivered = 0
        self._marks = {SOURCE_HEADER: "replay"} if marked else {}
        self._refusals: dict[str, _Refusal] = {}
        self._takers: dict[int, dict[Form, list[Connection]]] = {}
        self._connections: set[Connection] = set()
        self._dirty: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hold = hold
        self._quiet: asyncio.TimerHandle | None = None
        self._lost_takers = False
        self._over = False
        self._faults = Faults(faults, standin, self, seed)

    async def open(self) -> None:
        """Listen on two free ports of loopback."""
        self._websocket: WebSocketServer = await serve(
            self._converse,
            HOST,
            0,
            create_connection=Connection,
            compression=None,
            process_request=self._greet,
            process_response=self._mark,
            server_header=None,
            ping_interval=None,
            close_timeout=20,
            max_size=1024 * 1024,
            write_limit=_WRITE_LIMIT,
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._rest = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._rest.setup()
        await web.TCPSite(self._rest, HOST, 0).start()
        self._later(self._watch())

    def ready(self) -> dict[str, object]:
        """Return the ready object (design.md section 5a)."""
        websocket_port = next(iter(self._websocket.sockets)).getsockname()[1]
        return {
            "ready": True,
            "venue": self.standin.venue,
            "market": self.standin.market,
            "ws": f"ws://{HOST}:{websocket_port}",
            "rest": f"http://{HOST}:{self._rest.addresses[0][1]}",
            "streams": list(self.standin.streams),
            "instruments": self.standin.instruments,
            "protocol": self.standin.protocol,
        }

    async def close(self) -> None:
        """Close all sockets and end all tasks."""
        for task in self._tasks:
            task.cancel()
        self._websocket.close()
        closed = asyncio.ensure_future(self._websocket.wait_closed())
        await asyncio.wait({closed}, timeout=_CLOSE_S)
        for connection in self._connections:
            connection.transport.abort()
        await closed
        await self._rest.cleanup()

    # the play

    async def play(self) -> None:
        """Play the recording once, from the start of the clock to the last message, all handed over."""
        await self.clock.started.wait()
        play = self.standin.play
        while (due_ns := play.next_ns()) is not None:
            if (wait_s := self.clock.seconds_until(due_ns - _SLACK_NS)) > 0:
                await asyncio.sleep(max(wait_s, _TICK_S))
            until_ns = math.inf if self.clock.unpaced else self.clock.now_ns() + _SLACK_NS
            for _ in range(_BATCH):
                due = play.next_ns()
                if due is None or due > until_ns or self._lost_takers:
                    break
                self._send(play.take())
            self._flush()
            await self._breathe()
        for stream, payload in self._faults.left_over():
            self._deliver(stream, [payload])
        self._flush()

    def _send(self, message: Message) -> None:
        self.messages += 1
        self.clock.reach(message.time_ns)
        stream = message.stream
        if stream in self._faults.streams:
            payload = self.standin.play.payload(message)
            self._deliver(stream, self._faults.outgoing(stream, message.time_ns, payload))
        elif stream in self._takers:
            self._deliver(stream, (self.standin.play.payload(message),))

    def _deliver(self, stream: int, payloads: Sequence[bytes]) -> None:
        for form, connections in self._takers.get(stream, {}).items():
            for payload in payloads:
                framed = self._frame(payload if form is None else form(payload))
                for connection in connections:
                    connection.push(framed)
            self.delivered += len(payloads) * len(connections)
            self._dirty.update(connections)

    def _flush(self) -> None:
        for connection in self._dirty:
            connection.flush()
        self._dirty.clear()

    async def _breathe(self) -> None:
        """Let the sockets work; unpaced, wait for slow readers, and for lost ones to come back."""
        await asyncio.sleep(0)
        if not self.clock.unpaced:
            self._lost_takers = False
            return
        for connection in tuple(self._connections):
            if not connection.stalled:
                await connection.room.wait()
        if self._lost_takers:
            self._lost_takers = False
            if not self._takers:
                self.clock.started.clear()
                give_up = asyncio.get_running_loop().call_later(RETURN_S, self.clock.start)
                await self.clock.started.wait()
                give_up.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Wait until all that was sent is taken, stalled connections left out."""
        deadline_s = time.monotonic() + timeout_s
        while any(c.unsent_bytes and not c.stalled for c in self._connections):
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(0.005)

    async def hang_up(self, code: int, reason: str) -> None:
        """Close every WebSocket with `code`."""
        connections = list(self._connections)
        for connection in connections:
            self._leave(connection)
            if connection.stalled:
                connection.transport.abort()
        await asyncio.gather(*(connection.close(code, reason) for connection in connections))

    async def finish(self) -> None:
        """End the service of WebSockets: all data out, then close code 1000. REST goes on answering."""
        self._over = True
        await self.drain(timeout_s=60)
        await self.hang_up(1000, "")

    async def restart(self) -> None:
        """Begin anew, as a venue does after a reset: connections closed, everything at its beginning."""
        await self.drain(timeout_s=60)
        self.clock.stop()
        self.standin.rewind()
        self._faults.rewind()
        await self.hang_up(1001, "going away")

    # what faults do

    def cut(self, streams: Collection[int]) -> None:
        """Drop the TCP of all connections that carry one of `streams`."""
        for connection in self._carriers(streams):
            self._leave(connection)
            connection.hang_up()

    def stall(self, streams: Collection[int], seconds: float) -> None:
        """Send and read nothing on them for `seconds`."""
        loop = asyncio.get_running_loop()
        for connection in self._carriers(streams):
            connection.stall()
            if not math.isinf(seconds):
                loop.call_later(seconds, connection.resume)

    def refuse(self, kind: str, requests: int | None, seconds: float | None) -> None:
        """Answer requests with `kind`, so many of them or for so long."""
        self._refusals[kind] = _Refusal(requests, seconds)
        if kind == "maintenance":
            now_ns = self.standin.start_ns + self.clock.now_ns()
            for connection in tuple(self._connections):
                self._leave(connection)
                for event in connection.session.farewell(now_ns):
                    connection.push(self._frame(event))
                connection.flush()
                self._later(connection.close(1001, "maintenance"))

    def _refused(self, *kinds: str) -> tuple[int, int]:
        """Return (HTTP status, seconds to wait) of the first fault that refuses a request, else (0, 0)."""
        for kind in kinds:
            retry_after_s = self._refusals[kind].retry_after_s() if kind in self._refusals else 0
            if retry_after_s:
                return _HTTP_OF[kind], retry_after_s
        return 0, 0

    # WebSocket clients

    def _greet(self, connection: ServerConnection, request: Request) -> Response | None:
        assert isinstance(connection, Connection)
        client = connection.remote_address[0]
        most = self._rules.connections
        crowded = most is not None and len(self._connections) >= most
        if crowded or not self._attempts.admits(client, time.monotonic()):
            too_many = HTTPStatus.TOO_MANY_REQUESTS
            return connection.respond(too_many, f"{too_many.phrase}\n")
        status, _ = self._refused("maintenance", "unauthorized")
        if status or self._over:
            status = status or 503
            return connection.respond(HTTPStatus(status), f"{HTTPStatus(status).phrase}\n")
        try:
            session = self.standin.connect(request.path)
        except Refused as refused:
            return connection.respond(HTTPStatus(refused.status), f"{refused.text}\n")
        connection.prepare(session, self._rules, self._excess)
        return None

    def _mark(self, _connection: ServerConnection, _request: Request, response: Response) -> None:
        for name, value in self._marks.items():
            response.headers[name] = value

    async def _converse(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Connection)
        self._connections.add(connection)
        self._subscribed(connection)
        try:
            async for message in connection:
                for answer in connection.session.receive(message):
                    connection.push(self._frame(answer))
                connection.flush()
                self._subscribed(connection)
        except Violation as violation:
            await self._end(connection, violation)
        except ConnectionClosed:
            pass  # the client's end of a conversation is no error
        finally:
            self._leave(connection)
            self._connections.discard(connection)
            self._dirty.discard(connection)

    async def _end(self, connection: Connection, violation: Violation) -> None:
        for message in violation.last:
            connection.push(self._frame(message))
        connection.flush()
        await connection.close(violation.code, str(violation))

    def _subscribed(self, connection: Connection) -> None:
        """Take over a connection's subscriptions and wait for all of them to be quiet."""
        self._withdraw(connection)
        connection.carried = list(connection.session.wanted())
        for stream, form in connection.carried:
            self._takers.setdefault(stream, {}).setdefault(form, []).append(connection)
        if connection.session.subscribed and not (self._hold or self.clock.started.is_set()):
            if self._quiet is not None:
                self._quiet.cancel()
            self._quiet = asyncio.get_running_loop().call_later(QUIET_S, self.clock.start)

    def _withdraw(self, connection: Connection) -> None:
        for stream, form in connection.carried:
            forms = self._takers[stream]
            forms[form].remove(connection)
            if not forms[form]:
                del forms[form]
            if not forms:
                del self._takers[stream]
        connection.carried = []

    def _leave(self, connection: Connection) -> None:
        before = bool(self._takers)
        self._withdraw(connection)
        self._lost_takers |= before and not self._takers

    def _carriers(self, streams: Collection[int]) -> set[Connection]:
        forms = (self._takers.get(stream, {}).values() for stream in streams)
        return set(itertools.chain.from_iterable(itertools.chain.from_iterable(forms)))

    def _excess(self, connection: Connection) -> None:
        self._later(connection.close(1008, "too many messages"))

    async def _watch(self) -> None:
        """Ping, speak, and close what does not answer or has lived long enough."""
        rules = self._rules
        pinged_s: dict[Connection, float] = defaultdict(float)
        while True:
            await asyncio.sleep(min(1.0, rules.ping_every_s / 2, rules.idle_s / 4, rules.lifetime_s / 4))
            now_s = time.monotonic()
            for connection in self._connections:
                if connection.stalled:
                    continue
                self._let_speak(connection, now_s)
                if now_s - connection.opened_s >= rules.lifetime_s:
                    self._later(connection.close(1001, "connection lifetime reached"))
                elif now_s - connection.spoke_s >= rules.idle_s:
                    self._later(connection.close(1000, "idle"))
                elif now_s - connection.heard_s >= rules.pong_within_s:
                    self._later(connection.close(1008, "pong timeout"))
                elif now_s - max(pinged_s[connection], connection.opened_s) >= rules.ping_every_s:
                    pinged_s[connection] = now_s
                    self._later(connection.send_ping())
            for connection in pinged_s.keys() - self._connections:
                del pinged_s[connection]

    def _let_speak(self, connection: Connection, now_s: float) -> None:
        """Send what a venue says by itself."""
        if isinstance(connection.session, Speaking):
            try:
                for message in connection.session.due(now_s):
                    connection.push(self._frame(message))
                connection.flush()
            except Violation as violation:
                self._later(self._end(connection, violation))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # REST clients

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/_tapecast/ready":
            return self._response(Answer(200, orjson.dumps(self.ready())))
        if request.path == "/_tapecast/start":
            if request.method != "POST":
                return self._response(Answer(405, b'{"error":"expected POST"}'))
            self.clock.start()
            return self._response(Answer(200, b'{"started":true}'))
        status, retry_after_s = self._refused("maintenance", "429", "418")
        if status:
            return self._response(self.standin.refusal(status, retry_after_s))
        now_ns = self.standin.start_ns + self.clock.now_ns()
        query: Mapping[str, str] = request.query
        if request.method == "POST" and isinstance(self.standin, Postbox):
            refused, _ = self._refused("unauthorized")
            headers = {name.lower(): value for name, value in request.headers.items()}
            call = Posted(request.path, query, headers, await request.read(), authorized=not refused)
            return self._response(await self.standin.post(call, request.remote or "", now_ns))
        return self._response(await self.standin.rest(request.path, query, request.remote or "", now_ns))

    def _response(self, answer: Answer) -> web.Response:
        return web.Response(
            body=answer.body,
            status=answer.status,
            content_type=answer.content_type,
            headers={**answer.headers, **self._marks},
        )
