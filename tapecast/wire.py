"""The wire as a source of frames: over multicast with recovery, by TCP, or from the tapes of this host.

`books`, `listen`, `demo` and `subscribe` all read it through `Wire`.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from market_types.configuration import ConfigError, load
from market_types.enums import Flag
from market_types.places import shm_folder, state_folder
from market_types.venues import CRYPTO_TEXT_CHANNEL, STOCKS_TEXT_CHANNEL, VENUES, Venue
from tapecast.defaults_folder import DEFAULTS
from tapecast.errors import UsageError
from tapecast.sources import TICK_NS, MulticastSource, Source, TapeSource, TcpSource
from udp_protocol.multicast import GroupSender, group_address
from udp_protocol.receiver import Receiver
from udp_protocol.security import trust_of
from udp_protocol.sequencing import NS_PER_S, ChannelSequencer, Item, Lost
from udp_protocol.settings import Multicast
from udp_protocol.text import Gap, format_line

SOURCES = ("multicast", "tape")
TCP_SOURCE = "tcp://"
ALLOW_WORDS = {"replay": Flag.REPLAY, "sim": Flag.SIM}
MAX_LINES_PER_S = 10


def allowed(words: Iterable[str]) -> Flag:
    """Return the source marks that `--allow replay,sim` names. Raises UsageError."""
    marks = Flag(0)
    for word in words:
        if word not in ALLOW_WORDS:
            raise UsageError(f"--allow: {word!r}, expected replay, sim or both with a comma between")
        marks |= ALLOW_WORDS[word]
    return marks


def checked_source(via: str) -> str:
    """Return `via` if it is one of SOURCES or tcp://HOST:PORT. Raises UsageError."""
    if via.startswith(TCP_SOURCE):
        tcp_address(via)
    elif via not in SOURCES:
        raise UsageError(f"--via: {via!r}, expected {', '.join(SOURCES)} or tcp://HOST:PORT")
    return via


def tcp_address(via: str) -> tuple[str, int]:
    """Return host and port of tcp://HOST:PORT. Raises UsageError."""
    host, _, port = via.removeprefix(TCP_SOURCE).rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise UsageError(f"--via: {via!r}, expected tcp://HOST:PORT, such as tcp://127.0.0.1:9021")
    return host, int(port)


def settings_of(config: Path | None, environ: Mapping[str, str]) -> Multicast:
    """Return the wire's settings; `config` is what `--config` says. Raises ConfigError."""
    return load(Multicast, "multicast", folder=config, environ=environ, defaults=DEFAULTS)


def venues_of(name: str | None) -> list[Venue]:
    """Return the venue of that name, all of them for None. Raises UsageError."""
    if name is None:
        return list(VENUES.values())
    if name not in VENUES:
        raise UsageError(f"--venue: {name!r}, expected one of {', '.join(VENUES)}")
    return [VENUES[name]]


class LossTeller:
    """Tells the monitors what was lost here: GAP text lines, at most 10 a second and channel."""

    def __init__(self, settings: Multicast) -> None:
        self._settings = settings
        self._sender = GroupSender(settings.interface, ttl=settings.ttl)
        self._told: dict[int, deque[int]] = {}

    def tell(self, lost: Lost, now_ns: int) -> None:
        """Send the line of one range; now_ns is the realtime clock."""
        told = self._told.setdefault(lost.channel, deque(maxlen=MAX_LINES_PER_S))
        if lost.last < lost.first or (len(told) == MAX_LINES_PER_S and now_ns - told[0] < NS_PER_S):
            return
        told.append(now_ns)
        stocks = lost.channel > STOCKS_TEXT_CHANNEL
        channel = STOCKS_TEXT_CHANNEL if stocks else CRYPTO_TEXT_CHANNEL
        port = self._settings.port_stocks if stocks else self._settings.port_crypto
        line = format_line(Gap(lost.channel, lost.session, lost.first, lost.last, "lost", now_ns))
        self._sender.send(f"{line}\n".encode(), (group_address(self._settings.group_a, channel), port))

    def close(self) -> None:
        """Close the socket."""
        self._sender.close()


class Wire:
    """Frames in order from a set of venues, and the state of what was there before, for `tapecast.joining`.

    Seals and senders are checked as `multicast.security` says, by multicast; keys may be changed meanwhile.

    via  one of SOURCES, or tcp://HOST:PORT
    Raises ConfigError for keys that cannot be used.
    """

    def __init__(
        self,
        venues: Sequence[Venue],
        settings: Multicast,
        *,
        allow: Flag,
        via: str,
        environ: Mapping[str, str],
    ) -> None:
        self.settings = settings
        channels = [channel for venue in venues for channel in venue.channels]
        trust = trust_of(settings.security)
        self._keys = trust.keys
        self._receiver = Receiver(channels, time.monotonic_ns(), allow=allow)
        self._source: Source
        if via.startswith(TCP_SOURCE):
            self._source = TcpSource(*tcp_address(via), self._receiver, allow)
        elif via == "tape":
            archive = settings.archive.folder(state_folder(environ))
            self._source = TapeSource(venues, shm_folder(environ), archive, allow, settings, self._receiver)
        else:
            self._receiver.trust(trust)
            self._source = MulticastSource(venues, settings, self._receiver, allow, trust)
        self._teller = LossTeller(settings)
        self._ticked_ns = self._refreshed_ns = 0
        self._bad_keys = 0

    @property
    def channels(self) -> dict[int, ChannelSequencer]:
        """Return the sequencers by channel."""
        return self._receiver.channels

    def states(self, now_ns: int) -> dict[int, str]:
        """Return live, recovering or stale for each channel that was heard; now_ns is monotonic."""
        return {
            channel: sequencer.state(now_ns)
            for channel, sequencer in self.channels.items()
            if sequencer.session
        }

    @property
    def statistics(self) -> Counter[str]:
        """Return how often lines fell silent and channels got stale, and what was asked of the keeper."""
        return self._receiver.silences + self._source.traffic

    def want_state(self, channel: int, symbol_id: int) -> None:
        """Ask the keeper for the state of an instrument, 0 = of all."""
        self._source.want_state(channel, symbol_id)

    def leave_spin(self) -> None:
        """Stop listening to the state loop."""
        self._source.leave_spin()

    @property
    def counters(self) -> Counter[str]:
        """Return the counters of SPEC.md section 10, socket_drops, bad_keys (changes refused)."""
        return self._receiver.counters + self._source.counters + Counter(bad_keys=self._bad_keys)

    @property
    def rcvbuf_bytes(self) -> int:
        """Return the receive buffer that the kernel granted, 0 for a tape."""
        return self._source.rcvbuf_bytes

    @property
    def followed(self) -> list[ChannelSequencer]:
        """Return the channels that follow a session that was alive when first heard."""
        return [
            sequencer
            for sequencer in self.channels.values()
            if sequencer.session and not sequencer.born_ended
        ]

    @property
    def done(self) -> bool:
        """Return whether every session followed has ended and was delivered or reported lost."""
        followed = self.followed
        return bool(followed) and all(sequencer.done for sequencer in followed)

    def poll(self, timeout_s: float) -> list[Item]:
        """Return what came, in order a channel; waits up to `timeout_s` for the first."""
        out: list[Item] = []
        self._source.poll(timeout_s, out)
        now_ns = time.monotonic_ns()
        if now_ns - self._ticked_ns >= TICK_NS:
            self._ticked_ns = now_ns
            self._receiver.tick(now_ns, out)
        if now_ns - self._refreshed_ns >= NS_PER_S:
            self._refreshed_ns = now_ns
            self._refresh_keys()
        for item in out:
            if isinstance(item, Lost):
                self._teller.tell(item, time.time_ns())
        return out

    def _refresh_keys(self) -> None:
        """Take keys that were put beside the old ones, and forget those that were taken away."""
        try:
            self._keys.refresh()
        except ConfigError:
            self._bad_keys += 1

    def close(self) -> None:
        """Leave the groups."""
        self._source.close()
        self._teller.close()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
