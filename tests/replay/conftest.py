"""A stand-in in the test's own process, and clients for it."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from recording import open_capture
from replay.binance import BinanceStandIn
from replay.faults import read_faults
from replay.server import Server
from replay.stand_ins import stand_in_of

SMALL = "binance_usdm/20210722_BINANCE_FUTURES.ws.1.0.gz"


class Stand:
    """A running stand-in."""

    def __init__(self, server: Server, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http
        self.ready = server.ready()
        self.streams: list[str] = self.ready["streams"]
        self.playing = asyncio.get_running_loop().create_task(server.play())

    def connect(self, target: str, **options: Any) -> connect:
        # unread messages keep a client from seeing the answer to its close frame
        options = {"compression": None, "max_size": None, "close_timeout": 0.2, **options}
        return connect(self.ready["ws"] + target, **options)

    async def connect_raw(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the bare TCP streams of a client after its handshake: it reads only what it is told to."""
        host, port = self.ready["ws"].removeprefix("ws://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def get(self, path: str) -> tuple[int, Any, dict[str, str]]:
        async with self.http.get(self.ready["rest"] + path) as response:
            return response.status, orjson.loads(await response.read()), dict(response.headers)

    async def start(self) -> None:
        async with self.http.post(self.ready["rest"] + "/_tapecast/start") as response:
            assert response.status == 200

    async def collect(self, client: ClientConnection, *, patience_s: float = 0.5) -> list[str]:
        """Start the clock, return what arrives until the play is over, the client lost or all silent."""
        await self.start()
        fence = asyncio.create_task(self._fence(client))
        messages: list[str] = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                receiving = asyncio.create_task(client.recv())
                await asyncio.wait(
                    {receiving, fence}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not receiving.done():
                    receiving.cancel()
                    await asyncio.wait({receiving})
                    break
                messages.append(receiving.result())
        fence.cancel()
        return messages

    async def _fence(self, client: ClientConnection) -> None:
        """Return when all that was sent to `client` has arrived: the pong comes behind it."""
        await asyncio.wait({self.playing})
        with contextlib.suppress(ConnectionClosed):
            await (await client.ping())


@pytest.fixture(scope="session")
def small(recordings: Path) -> Path:
    """Return the short capture that has an instrument list, snapshots and four symbols."""
    return recordings / SMALL


@pytest.fixture
def run(small: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs `scenario(stand)` beside a stand-in."""

    def run_scenario(
        scenario: Callable[[Stand], Coroutine[Any, Any, Any]],
        *,
        paths: Sequence[Path] = (),
        market: str | None = None,
        speed: float = math.inf,
        alias: int = 0,
        faults: str = "",
        prepare: Callable[[BinanceStandIn], None] = lambda _: None,
        hold: bool = False,
        lifetime_s: float | None = None,
    ) -> Any:
        file = None
        if faults:
            (tmp_path / "faults.toml").write_text(faults)
            file = read_faults(tmp_path / "faults.toml")
        capture = open_capture(paths or [small], market)
        standin = stand_in_of(capture, alias, 0)
        prepare(standin)

        @contextlib.asynccontextmanager
        async def running() -> AsyncIterator[Stand]:
            server = Server(standin, speed, file, 0, marked=alias == 0, hold=hold, lifetime_s=lifetime_s)
            await server.open()
            async with aiohttp.ClientSession() as http:
                stand = Stand(server, http)
                try:
                    yield stand
                finally:
                    stand.playing.cancel()
                    await server.close()

        async def body() -> Any:
            async with asyncio.timeout(20), running() as stand:
                return await scenario(stand)

        return uvloop.run(body())

    return run_scenario
