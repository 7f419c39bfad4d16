"""One client of a stand-in at full speed, and the CPU it took: `feed_once.py ours|plain WS REST STREAM,...`.

ours   the feeder's own link, adapter, batch, framing, tape and multicast
plain  the way one would begin: websockets, orjson, float, one sendto a message
Prints `{"messages":…,"cpu_us_per_message":…}`; counted from the thousandth message to the last.
"""

import asyncio
import gc
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

import orjson

GROUP, PORT = "239.255.11.250", 29_001
WARM = 1000


class Meter:
    """CPU time of this process between two messages."""

    def __init__(self) -> None:
        self.n_messages = 0
        self.begun_s = self.ended_s = 0.0

    def note(self, n_messages: int) -> None:
        now_s = time.process_time()
        if self.n_messages < WARM <= n_messages:
            self.begun_s = now_s
            self.first = n_messages
        if n_messages > self.n_messages:
            self.n_messages, self.ended_s = n_messages, now_s

    def report(self) -> None:
        counted = self.n_messages - self.first
        print(
            orjson.dumps(
                {
                    "messages": self.n_messages,
                    "cpu_us_per_message": (self.ended_s - self.begun_s) / counted * 1e6,
                }
            ).decode()
        )


async def ours(ws: str, rest_url: str, streams: list[str]) -> None:
    """Feed with the project's own parts, unpaced."""
    from feeder.main import WRITER_SUFFIX, instrument_list
    from feeder.publisher import Publisher
    from feeder.rest import Rest
    from feeder.runner import Feed, Runner
    from feeder.selection import numbered
    from feeder.settings import Market, VenueSettings
    from feeder.venues.base import Shared
    from feeder.venues.binance import MARKETS
    from feeder.warmth import warm_up
    from market_types.enums import Flag
    from market_types.registry import SymbolRegistry
    from market_types.venues import VENUES
    from udp_protocol.settings import Multicast
    from udp_protocol.tape_writer import TapeFolder

    warm_up()
    venue, market = VENUES["binance"], MARKETS["usdm"]
    settings = VenueSettings(symbols=("*",), market={"usdm": Market(ws_url=ws, rest_url=rest_url)})
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        folder = TapeFolder(Path(memory) / "shm", "binance" + WRITER_SUFFIX[Flag.REPLAY])
        publisher = Publisher(
            venue, Multicast(port_crypto=PORT), settings.n_channels, Flag.REPLAY, folder, int(time.time()), 0
        )
        publisher.start()
        shared = Shared()
        async with Rest(rest_url, market.limits, shared.counters) as rest:
            feed = Feed(market, rest, ws, shared)
            runner = Runner(publisher, paced=0, ends_with_recording=True)
            runner.begin()
            listed = market.instruments((await instrument_list(feed)).body)
            instruments = numbered(listed, SymbolRegistry(Path(memory), venue), settings.n_channels)
            publisher.define(instruments)
            runner.connect(feed, market.plans(instruments, settings, streams))
            gc.freeze()
            gc.disable()
            while not runner.subscribed:
                await asyncio.sleep(0.01)
            await rest.post("/_tapecast/start")
            meter = Meter()
            while not all(link.ended for link in runner.links):
                await asyncio.sleep(0.005)
                meter.note(runner.n_messages)
            await runner.stop()
        publisher.close()
    assert not shared.counters, shared.counters
    meter.report()


async def plain(ws: str, rest_url: str, streams: list[str]) -> None:
    """Do the same work the plain way: decode, floats, pack, one datagram a message."""
    import aiohttp
    from websockets.asyncio.client import connect

    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    level, head = struct.Struct("<dd"), struct.Struct("<qqHH")
    meter = Meter()
    n_messages = 0
    async with connect(f"{ws}/public/stream", max_size=None, compression=None) as connection:
        await connection.send(orjson.dumps({"method": "SUBSCRIBE", "params": streams, "id": 1}))
        await connection.recv()
        async with aiohttp.ClientSession() as session:
            await session.post(f"{rest_url}/_tapecast/start")
        async for message in connection:
            data = orjson.loads(message)["data"]
            kind = data["e"]
            if kind == "depthUpdate":
                bids = [(float(px), float(qty)) for px, qty in data["b"]]
                asks = [(float(px), float(qty)) for px, qty in data["a"]]
                payload = head.pack(data["u"], data["T"], len(bids), len(asks))
                payload += b"".join([level.pack(px, qty) for px, qty in bids + asks])
            elif kind == "bookTicker":
                payload = head.pack(data["u"], data["T"], 1, 1)
                payload += level.pack(float(data["b"]), float(data["B"]))
                payload += level.pack(float(data["a"]), float(data["A"]))
            else:
                payload = head.pack(data["t"], data["T"], data["m"], 0)
                payload += level.pack(float(data["p"]), float(data["q"]))
            out.sendto(payload[:60_000], (GROUP, PORT))
            n_messages += 1
            if n_messages % 500 == 0:
                meter.note(n_messages)
    meter.note(n_messages)
    meter.report()


def main() -> None:
    way, ws, rest_url, streams = sys.argv[1:]
    if way == "ours":
        import uvloop

        uvloop.run(ours(ws, rest_url, streams.split(",")))
    else:
        import uvloop

        uvloop.run(plain(ws, rest_url, streams.split(",")))


main()
