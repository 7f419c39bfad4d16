"""Which instruments a channel has, for late joiners that keep no books. Pure. Source: SPEC.md, section 8.

It has the face of `udp_protocol.joining.ChannelJoin` and holds nothing back.
"""

from collections import Counter

from market_types.enums import MsgType
from udp_protocol.frame import Frame, FrameError, flags_ok
from udp_protocol.joining import (
    ASK_AGAIN_NS,
    MAX_ASKED,
    MAX_INSTRUMENTS,
    PATIENCE_CYCLES,
    PATIENCE_NS,
    Folded,
)
from udp_protocol.ordering import Item, SessionBegin
from udp_protocol.payloads import decode

_DEF = int(MsgType.INSTRUMENT_DEF)
_END_PHASE = 2
_NEVER = -1


class ChannelDefinitions:
    """Sorts the definitions out of one channel's frames and those of its state loop.

    counters  bad_payload, bad_flags, buffer_full (more instruments than a channel may have), unknown_session
    """

    def __init__(self, counters: Counter[str], now_ns: int) -> None:
        self._counters = counters
        self._since_ns = now_ns
        self._asked_ns = 0
        self._begin(0)

    def _begin(self, session: int) -> None:
        self._session = session
        self._defined_at: dict[int, int] = {}  # number of the newest definition, by symbol_id
        self._n_instruments = self._asof = _NEVER  # as the state loop says
        self._ends = 0

    def synced(self, symbol_id: int) -> bool:
        """Return whether the instrument is defined."""
        return self._defined_at.get(symbol_id, _NEVER) != _NEVER

    def ready(self, first: int) -> bool:
        """Return whether all instruments of the channel are defined; `first`: see `ChannelJoin.state`."""
        if first <= 1:
            return first == 1
        n_defined = sum(at != _NEVER for at in self._defined_at.values())
        return self._asof >= first - 1 and n_defined >= self._n_instruments

    def wanted(self, first: int, now_ns: int) -> list[int]:
        """Return the symbol_ids whose state is to be asked for now, 0 for all; at most once a second."""
        patient = self._ends < PATIENCE_CYCLES and now_ns - self._since_ns < PATIENCE_NS
        if not first or patient or now_ns - self._asked_ns < ASK_AGAIN_NS or self.ready(first):
            return []
        self._asked_ns = now_ns
        missing = [symbol_id for symbol_id, at in self._defined_at.items() if at == _NEVER]
        return missing if 0 < len(missing) <= MAX_ASKED and self._n_instruments != _NEVER else [0]

    def take(self, item: Item, now_ns: int, out: list[Folded]) -> None:  # noqa: ARG002  (as ChannelJoin)
        """Take what the channel delivered; whoever delivers it reads the definitions among it himself."""
        if isinstance(item, SessionBegin):
            self._begin(item.session)
            self._since_ns = now_ns
        elif isinstance(item, Frame) and item.header.symbol_id:
            header = item.header
            self._note(header.symbol_id, header.channel_seq if header.msg_type == _DEF else _NEVER)

    def state(self, frame: Frame, first: int, out: list[Folded]) -> None:  # noqa: ARG002  (as ChannelJoin)
        """Take a frame of the state loop; `out` gets the definitions that are newer than what is known."""
        header = frame.header
        if not flags_ok(header, spin=True):
            self._counters["bad_flags"] += 1
        elif header.session_id != self._session:
            self._counters["unknown_session"] += self._session > 0
        elif header.msg_type == MsgType.SPIN_MARK:
            try:
                root = decode(header, frame.payload).root
            except FrameError as error:
                self._counters[error.counter] += 1
                return
            self._n_instruments, self._asof = root.n_instruments, root.begin_asof
            self._ends += root.phase == _END_PHASE
        elif header.msg_type == _DEF and self._note(header.symbol_id, header.channel_seq):
            out.append(frame)

    def _note(self, symbol_id: int, number: int) -> bool:
        """Note an instrument, and that it was defined at a number. Return whether that is news."""
        known = self._defined_at.get(symbol_id)
        if known is None and len(self._defined_at) >= MAX_INSTRUMENTS:
            self._counters["buffer_full"] += 1
            return False
        if known is not None and number <= known:
            return False
        self._defined_at[symbol_id] = number
        return True
