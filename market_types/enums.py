"""The numbers of the wire that are not a venue's own. Source: SPEC.md, sections 2 and 4."""

from enum import IntEnum, IntFlag


class MarketKind(IntEnum):
    """What an instrument is; `market_kind` of the header."""

    NONE = 0
    SPOT = 1
    LINEAR_PERP = 2
    INVERSE_PERP = 3
    LINEAR_FUTURE = 4
    INVERSE_FUTURE = 5
    OPTION = 6
    INDEX = 7
    EQUITY = 16
    ETF = 17
    EQUITY_OPTION = 18
    EQUITY_FUTURE = 19
    EQUITY_INDEX = 20
    BOND = 21
    FX = 22

    @property
    def word(self) -> str:
        """Return the type word of the text lines and of JSON, "" for NONE."""
        return _KIND_WORDS[self]


_KIND_WORDS = {
    MarketKind.NONE: "",
    MarketKind.SPOT: "spot",
    MarketKind.LINEAR_PERP: "perp",
    MarketKind.INVERSE_PERP: "perp-inv",
    MarketKind.LINEAR_FUTURE: "future",
    MarketKind.INVERSE_FUTURE: "future-inv",
    MarketKind.OPTION: "option",
    MarketKind.INDEX: "index",
    MarketKind.EQUITY: "equity",
    MarketKind.ETF: "etf",
    MarketKind.EQUITY_OPTION: "eq-option",
    MarketKind.EQUITY_FUTURE: "eq-future",
    MarketKind.EQUITY_INDEX: "eq-index",
    MarketKind.BOND: "bond",
    MarketKind.FX: "fx",
}


class MsgType(IntEnum):
    """`msg_type` of the header."""

    HEARTBEAT = 0x01
    SESSION_START = 0x02
    SESSION_END = 0x03
    SPIN_MARK = 0x04
    TRADE = 0x10
    L2_SNAPSHOT = 0x11
    L2_DELTA = 0x12
    BBO = 0x13
    BOOK_CLEAR = 0x14
    L3_INFERRED = 0x15
    LIQUIDATION = 0x16
    GAP = 0x17
    INSTRUMENT_DEF = 0x20
    VENUE_STATUS = 0x21
    STATS = 0x22
    FEATURES = 0x30
    SIGNAL = 0x31
    RETX_REQUEST = 0x70
    RETX_RESPONSE = 0x71
    STATE_REQUEST = 0x72


class Flag(IntFlag):
    """`flags` of the header."""

    UNSEQ = 1
    SNAP = 2
    MORE = 4
    BACKFILL = 8
    SYNTH = 16
    TS_APPROX = 32
    CLOCK_UNSYNC = 64
    NOTAPE = 128
    STALE = 256
    TEST = 512
    END = 1024
    REPLAY = 2048
    SIM = 4096


#: the marks a receiver must have been opened for
SOURCE_MARKS = Flag.REPLAY | Flag.SIM | Flag.TEST


class BookSide(IntEnum):
    """Side of a level or a resting order."""

    BID = 1
    ASK = 2


class Aggressor(IntEnum):
    """Side of the taker of a trade: BUY lifted the ask."""

    UNKNOWN = 0
    BUY = 1
    SELL = 2


class Action(IntEnum):
    """What a level entry does."""

    SET = 0
    DELETE = 1


class TradeFlag(IntFlag):
    """`tflags` of a trade."""

    BLOCK = 1
    LIQUIDATION = 2
    AUCTION = 4
    RETAIL = 8
    CORRECTION = 16
    CANCELLED = 32
    ID_IS_HASH = 64
    ODD_LOT = 128


class ClearReason(IntEnum):
    """`reason` of BOOK_CLEAR and GAP."""

    NEVER_HAD = 0
    VENUE_RESYNC = 1
    LINK_LOST = 2
    VENUE_CHECKSUM = 3
    VENUE_SEQ_GAP = 4
    HALT = 5
    RESTART = 6
    OPERATOR = 7
    KEEPER_UNKNOWN = 8
    ENCODE_RANGE = 9


class GapStream(IntEnum):
    """`stream` of GAP."""

    TRADES = 1
    BOOK = 2
    ALL = 3


class GapState(IntEnum):
    """`state` of GAP."""

    OPEN = 1
    FILLED = 2
    LOST = 3


class InstrumentStatus(IntEnum):
    """`status` of INSTRUMENT_DEF."""

    ACTIVE = 1
    HALTED = 2
    DELISTED = 3
    PRE_OPEN = 4


class OptionRight(IntEnum):
    """`option_right` of INSTRUMENT_DEF."""

    NONE = 0
    CALL = 1
    PUT = 2


class VenueState(IntEnum):
    """`state` of VENUE_STATUS."""

    DOWN = 0
    CONNECTING = 1
    UP = 2
    DEGRADED = 3
    MAINTENANCE = 4


class EndReason(IntEnum):
    """`reason` of SESSION_END."""

    PLANNED = 1
    FAULT = 2


class L3Event(IntEnum):
    """`event` of L3_INFERRED."""

    ADD = 1
    CANCEL = 2
    MODIFY = 3
    FILL = 4
    REPLACE = 5


class StatKind(IntEnum):
    """`kind` of a STATS entry."""

    MARK = 1
    INDEX = 2
    FUNDING = 3
    PREDICTED_FUNDING = 4
    NEXT_FUNDING_TIME = 5
    OPEN_INTEREST_BASE = 6
    OPEN_INTEREST_QUOTE = 7
    VOLUME_24H_BASE = 8
    VOLUME_24H_QUOTE = 9
    HIGH = 10
    LOW = 11
    OPEN = 12
    LAST = 13
    SETTLEMENT = 14
    ESTIMATED_SETTLEMENT = 15
    IV_MARK = 16
    IV_BID = 17
    IV_ASK = 18
    DELTA = 19
    GAMMA = 20
    VEGA = 21
    THETA = 22
    RHO = 23
    BORROW_RATE = 24
    INSURANCE_FUND = 25
    NAV = 26
    PRICE_LIMIT_UP = 27
    PRICE_LIMIT_DOWN = 28
    OPEN_INTEREST_CONTRACTS = 29
    VOLUME_24H_CONTRACTS = 30
    EXPECTED_PRICE = 31
    EXPECTED_QTY = 32


class SealAlg(IntEnum):
    """Algorithm of a datagram's seal, weakest first; NONE = no seal required."""

    NONE = 0
    CRC32 = 1
    HMAC_SHA256 = 2
    BLAKE2B = 3


#: price that is not there: no bid, no strike
NULL_PRICE = -(2**63)
#: a venue without a number of its own
NO_SEQ = -1
