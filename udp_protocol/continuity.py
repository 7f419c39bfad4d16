"""Which instruments are whole: `inst_seq` numbers their frames without holes. Source: SPEC.md, section 7."""

from udp_protocol.frame import Header
from udp_protocol.sequencing import Lost, SessionBegin

MODULO = 2**32


class Continuity:
    """Follows `inst_seq` of every instrument; an instrument with a hole is suspect until proven whole."""

    def __init__(self) -> None:
        self.suspect: set[int] = set()  # symbol ids
        self._last: dict[int, int] = {}
        self._channel: dict[int, int] = {}

    def begin(self, session: SessionBegin) -> None:
        """Forget the channel's instruments: all numbers restart."""
        for symbol_id in [known for known, channel in self._channel.items() if channel == session.channel]:
            del self._channel[symbol_id], self._last[symbol_id]
            self.suspect.discard(symbol_id)

    def lost(self, lost: Lost) -> None:
        """Suspect every instrument of the channel: the lost frames may have been theirs."""
        self.suspect.update(known for known, channel in self._channel.items() if channel == lost.channel)

    def whole(self, header: Header) -> bool:
        """Return whether no frame of the header's instrument is missing before this one, and count it."""
        symbol_id = header.symbol_id
        if not symbol_id:
            return True
        last = self._last.get(symbol_id)
        self._last[symbol_id] = header.inst_seq
        self._channel[symbol_id] = header.channel_id
        self.suspect.discard(symbol_id)
        return last is None or header.inst_seq == (last + 1) % MODULO
