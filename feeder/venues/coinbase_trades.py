"""The trades of one Coinbase connection: each once, what the channel dropped fetched by REST.

Source: "Matches channel" and "Heartbeat channel": messages of `matches` can be dropped, the heartbeat's
`last_trade_id` tells. Past trades come newest first; `after=N` gives those below N, without a key.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from feeder.batch import Batch, Request
from feeder.venues.coinbase_messages import Heartbeat, LastMatch, Match, PastMatch, read_past
from feeder.venues.decoding import rfc3339_ns
from feeder.venues.trade_chains import KNOWN, TradeChain, TradeChains
from feeder.venues.trade_ids import TradeIds
from feeder.venues.watch import Watch
from market_types.enums import NO_SEQ, Aggressor, Flag
from market_types.instruments import Instrument

PAGE: Final = 1_000  # trades of one answer
PRIORITY: Final = 20

_AGGRESSORS = {"buy": int(Aggressor.SELL), "sell": int(Aggressor.BUY)}  # by the maker's side
_BACKFILL = int(Flag.BACKFILL)


class Matches(TradeChain):
    """The trades of one product. told is the last id of the heartbeat before, -1 = none yet."""

    __slots__ = ("told",)

    def __init__(self, instrument: Instrument, watch: Watch, ids: TradeIds) -> None:
        super().__init__(instrument, watch, ids)
        self.told = -1


class Trades(TradeChains[Matches, Match | PastMatch]):
    """All trades of a connection, by product."""

    def __init__(self, counters: Counter[str], chains: Iterable[Matches]) -> None:
        super().__init__(counters, chains)

    def match(self, match: Match, ts_recv_ns: int, out: Batch) -> None:
        """Take one execution. Raises VenueError."""
        chain = self._chains[match.product_id]
        chain.watch.heard(ts_recv_ns)
        flags = self.see(chain, match.trade_id, rfc3339_ns(match.time), ts_recv_ns, out)
        if flags != KNOWN:
            self.publish(chain, match, flags, ts_recv_ns, out)

    def last_match(self, match: LastMatch, ts_recv_ns: int, out: Batch) -> None:
        """Count from the trade before the subscription; publish it if it was missed. Raises VenueError."""
        chain = self._chains[match.product_id]
        first = chain.ids.last < 0
        if match.trade_id == chain.ids.last:
            return
        flags = self.see(chain, match.trade_id, rfc3339_ns(match.time), ts_recv_ns, out)
        if flags != KNOWN and not first:
            self.publish(chain, match, flags | _BACKFILL, ts_recv_ns, out)

    def beat(self, beat: Heartbeat, ts_recv_ns: int, out: Batch) -> None:
        """Miss what the heartbeat before told of and no message has brought since."""
        chain = self._chains[beat.product_id]
        told, chain.told = chain.told, beat.last_trade_id
        if 0 <= chain.ids.last < told <= beat.last_trade_id:  # else the engine counts anew
            self.behind(chain, told, ts_recv_ns, out)

    def number(self, said: Match | PastMatch) -> int:
        """Return a trade's id."""
        return said.trade_id

    def append(
        self, chain: Matches, said: Match | PastMatch, flags: int, ts_recv_ns: int, out: Batch
    ) -> None:
        """Append one trade. Raises VenueError."""
        out.trade(
            chain.instrument,
            rfc3339_ns(said.time),
            ts_recv_ns,
            said.price,
            said.size,
            said.trade_id,
            _AGGRESSORS[said.side],
            venue_seq=said.sequence if isinstance(said, Match) else NO_SEQ,
            flags=flags,
        )

    def request(self, chain: Matches, wanted: range) -> tuple[range, Request]:
        """Return a call for the oldest that are wanted."""
        asked, symbol = wanted[:PAGE], chain.instrument.symbol
        path = f"/products/{symbol}/trades?limit={len(asked)}&after={asked.stop}"
        return asked, Request(path, weight=1, priority=PRIORITY, key=f"trades:{symbol}")

    def past(self, chain: Matches, body: bytes) -> Sequence[Match | PastMatch]:  # noqa: ARG002
        """Return the trades in an answer, oldest first. Raises VenueError."""
        return read_past(body)[::-1]
