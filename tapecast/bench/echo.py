"""The least there can be between WebSocket and multicast: picows, each message sent as it is. A reference.

`python -m tapecast.bench.echo WS REST [[PATH, [STREAM, ...]], ...] GROUP PORT`
"""

import asyncio
import sys
from collections.abc import Sequence

import aiohttp
import orjson
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from udp_protocol.multicast import GroupSender

MAX_DATAGRAM = 60_000


class Echo(WSListener):
    """Subscribes, and sends on every message but the first, which acknowledges that."""

    def __init__(self, streams: Sequence[str], sender: GroupSender, group: tuple[str, int]) -> None:
        self.acknowledged = asyncio.Event()
        self._streams = streams
        self._sender = sender
        self._group = group

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe."""
        transport.send(
            WSMsgType.TEXT, orjson.dumps({"method": "SUBSCRIBE", "params": self._streams, "id": 1})
        )

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Send on what is data."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif self.acknowledged.is_set():
            self._sender.send(frame.get_payload_as_bytes()[:MAX_DATAGRAM], self._group)
        else:
            self.acknowledged.set()


async def run(ws: str, rest: str, asked: Sequence[tuple[str, list[str]]], group: tuple[str, int]) -> None:
    """Connect, let the recording start, and stay until killed."""
    sender = GroupSender("127.0.0.1", ttl=0)
    for path, streams in asked:
        echo = Echo(streams, sender, group)
        await ws_connect(lambda echo=echo: echo, f"{ws}{path}")
        await echo.acknowledged.wait()
    async with aiohttp.ClientSession() as session:
        await session.post(f"{rest}/_tapecast/start")
    await asyncio.Event().wait()


if __name__ == "__main__":
    ws_url, rest_url, plans, address, port = sys.argv[1:]
    uvloop.run(run(ws_url, rest_url, orjson.loads(plans), (address, int(port))))
