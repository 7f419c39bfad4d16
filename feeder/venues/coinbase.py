"""Coinbase: the Exchange feed, or as an option Advanced Trade, which has futures but tells trades later.

A configuration has `ws_url` and `rest_url` at its top, for the Exchange, or a table `[market.advanced]`: the
same product of both would be one instrument.
"""

from feeder.venues.coinbase_advanced import Advanced
from feeder.venues.coinbase_exchange import Exchange

MARKETS = {market.name: market for market in (Exchange(), Advanced())}
