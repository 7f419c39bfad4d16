"""Who wishes the wire ill: floods of datagrams to groups, and of requests to a keeper. Run as a process.

Its one JSON argument is an `Attack`. What is sent begins as real frames of a tape and is then changed, so
that it gets far into whoever reads it. Prints what it sent when it is told to end.
"""

import random
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
import orjson

from market_types.enums import Flag
from tapecast.chaos.mutation import mutated
from tapecast.tapes import Record, read, segments_at
from udp_protocol.frame import unpack_header
from udp_protocol.multicast import GroupSender, group_address
from udp_protocol.retransmission import request

HOST: Final = "127.0.0.1"
KEPT: Final = 2_000  # datagrams of the tape to begin with
STEP_S: Final = 0.002


class Attack(msgspec.Struct, frozen=True):
    """What to do.

    kind    datagrams: to the groups of all channels; requests: to a keeper's port
    tape    folder of a writer whose frames are changed
    per_s   so many a second
    """

    kind: Literal["datagrams", "requests"]
    tape: str
    prefix: str
    port: int
    per_s: int
    seed: int
    channels: tuple[int, ...] = ()


def main() -> None:
    """Attack until told to end."""
    attack = msgspec.json.decode(sys.argv[1], type=Attack)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    weapon = _Datagrams(attack) if attack.kind == "datagrams" else _Requests(attack)
    print('{"ready":true}', flush=True)
    begun = time.perf_counter()
    sent = 0
    while not stopped.is_set():
        for _ in range(int((time.perf_counter() - begun) * attack.per_s) - sent):
            weapon.fire()
            sent += 1
        time.sleep(STEP_S)
    seconds = time.perf_counter() - begun
    print(orjson.dumps({"sent": sent, "per_s": sent / seconds, **weapon.told}).decode(), flush=True)


class _Datagrams:
    """Changed frames of the tape, each to its own group or to another."""

    def __init__(self, attack: Attack) -> None:
        self.told: dict[str, int] = {}
        pick = random.Random(attack.seed)
        sender = GroupSender(HOST, ttl=0)
        found = []
        for item in read(segments_at(Path(attack.tape))):
            if isinstance(item, Record):
                found.append(item.datagram)
            if len(found) == KEPT:
                break
        self._shots = [
            (mutated(data, pick), (group_address(attack.prefix, data[30]), attack.port))
            for data in found
            for _ in range(4)
        ]
        pick.shuffle(self._shots)
        self._sender = sender
        self._at = 0

    def fire(self) -> None:
        """Send the next one."""
        self._at = (self._at + 1) % len(self._shots)
        self._sender.send(*self._shots[self._at])


class _Requests:
    """Requests of one socket: well formed, for as many frames as may be asked for at once."""

    def __init__(self, attack: Attack) -> None:
        self.told = {"answers": 0, "bytes": 0, "unsent": 0}
        self._channels = attack.channels
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.connect((HOST, attack.port))
        self._shots = [request(attack.channels[0], 0, (), 1, marks=int(Flag.REPLAY))]  # which session is it?
        self._session = 0
        self._at = 0

    def fire(self) -> None:
        """Send the next one, and throw away what was answered."""
        self._at = (self._at + 1) % len(self._shots)
        try:
            self._socket.send(self._shots[self._at])
        except OSError:
            self.told["unsent"] += 1
        for _ in range(4):
            try:
                answer = self._socket.recv(2048)
            except OSError:
                return
            self.told["bytes"] += len(answer)
            self.told["answers"] += 1
            if not self._session:
                self._aim(unpack_header(answer).session_id)

    def _aim(self, session: int) -> None:
        """Ask for frames of this session from now on."""
        self._session = session
        if session:
            asked = enumerate(self._channels * 50)
            self._shots = [request(channel, session, [(1, 256)], number) for number, channel in asked]


if __name__ == "__main__":
    main()
