"""Thresholds of the quality checks: the table `[quality]` of a venue's configuration."""

from typing import Annotated

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]


class QualitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is normal. The defaults report nothing on any recorded Binance market.

    clock_drift_ms  how far the venue's clock may be from ours, either way
    latency_ms      what the quickest message of ten seconds may take besides; only live
    price_z         robust z of a trade's log price above which it is extreme ...
    price_bbo_bps   ... if it is also so far outside the best bid and offer
    size_z          robust z of a trade's log size above which it is a spike
    stale_book_s    how long trades or quotes may go on while the book stands still
    """

    clock_drift_ms: Positive = 1000.0
    latency_ms: Positive = 250.0
    price_z: Positive = 10.0
    price_bbo_bps: Positive = 100.0
    size_z: Positive = 4.0
    stale_book_s: Positive = 5.0
