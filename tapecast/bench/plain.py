"""The way one would begin: websockets, orjson, float, one datagram a message. A reference, run as a program.

`python -m tapecast.bench.plain WS REST [[PATH, [STREAM, ...]], ...] GROUP PORT`
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson
import uvloop
from websockets.asyncio.client import ClientConnection, connect

LEVEL, HEAD = struct.Struct("<dd"), struct.Struct("<qqHH")
MAX_DATAGRAM = 60_000


def packed(message: dict[str, Any]) -> bytes:
    """Return what a message says as floats."""
    data = message["data"]
    kind = message["stream"].split("@")[1]
    if kind == "depth":
        bids = [(float(px), float(qty)) for px, qty in data["b"]]
        asks = [(float(px), float(qty)) for px, qty in data["a"]]
        payload = HEAD.pack(data["u"], data["E"], len(bids), len(asks))
        return payload + b"".join([LEVEL.pack(px, qty) for px, qty in bids + asks])
    if kind == "bookTicker":
        payload = HEAD.pack(data["u"], data.get("T", 0), 1, 1)
        payload += LEVEL.pack(float(data["b"]), float(data["B"]))
        return payload + LEVEL.pack(float(data["a"]), float(data["A"]))
    payload = HEAD.pack(data["t" if kind == "trade" else "a"], data["T"], data["m"], 0)
    return payload + LEVEL.pack(float(data["p"]), float(data["q"]))


async def converse(connection: ClientConnection, out: socket.socket, group: tuple[str, int]) -> None:
    """Send on what comes."""
    async for message in connection:
        out.sendto(packed(orjson.loads(message))[:MAX_DATAGRAM], group)


async def run(ws: str, rest: str, asked: Sequence[tuple[str, list[str]]], group: tuple[str, int]) -> None:
    """Subscribe, let the recording start, and stay when it is over, to be measured."""
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
    connections = []
    for path, streams in asked:
        connection = await connect(f"{ws}{path}", max_size=None, compression=None)
        await connection.send(orjson.dumps({"method": "SUBSCRIBE", "params": streams, "id": 1}))
        await connection.recv()
        connections.append(connection)
    async with aiohttp.ClientSession() as session:
        await session.post(f"{rest}/_tapecast/start")
    await asyncio.gather(*(converse(connection, out, group) for connection in connections))
    await asyncio.Event().wait()


if __name__ == "__main__":
    ws_url, rest_url, plans, address, port = sys.argv[1:]
    uvloop.run(run(ws_url, rest_url, orjson.loads(plans), (address, int(port))))
