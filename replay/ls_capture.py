"""What an LS Securities capture says: its frames by TR and key, its lists and the books as last sent.

Source: venues/ls.md, sections 3, 4 and 6. Where a capture holds single frames without receive times, they are
played in the order of their own times of day, with the market states (`JIF`) of a day's session between them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from recording import Capture, CaptureError, Received, Response
from replay.alias import Clone
from replay.script import Script

#: TR -> the field that holds its time of day; "" for frames without one
TIME_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("S3_", "K3_", "NS3", "US3"), "chetime"),
    **dict.fromkeys(("H1_", "HA_", "NH1", "UH1", "B7_", "YS3", "YK3", "NYS", "UYS", "H2_", "HB_"), "hotime"),
    **dict.fromkeys(("VI_", "NVI"), "time"),
    **dict.fromkeys(("S2_", "KS_", "NS2", "US2", "JIF"), ""),
    "UVI": "krx_time",
}
BOOKS = frozenset(("H1_", "HA_", "NH1", "UH1", "B7_"))
TRADES = frozenset(("S3_", "K3_", "NS3", "US3"))
EXPECTED = frozenset(("YS3", "YK3", "NYS", "UYS"))
#: keys of NXT and unified TRs: a letter, the code, three blanks
PADDED = frozenset(tr for tr in TIME_FIELDS if tr[0] in "NU")
_KOSDAQ = frozenset(("K3_", "HA_", "YK3", "KS_", "HB_"))
_KRX = frozenset(TIME_FIELDS) - PADDED - {"JIF"}
_UNDATED_NS = 86_400_000_000_000  # receive times below are no times of day at all
STEP_NS = 10_000_000  # between frames without receive times
LETTERS = {"": "K", "N": "N", "U": "U"}
#: time of day, `jangubun` and `jstatus`: KOSPI and KOSDAQ (1, 2) and NXT (6) on a plain day before 2026-09-14
_SESSION = (
    ("080000", "6", "55"), ("083000", "1", "11"), ("083000", "2", "11"), ("085000", "6", "57"),
    ("090000", "1", "21"), ("090000", "2", "21"), ("090030", "6", "21"), ("152000", "6", "41"),
    ("152000", "1", "31"), ("152000", "2", "31"), ("153000", "1", "41"), ("153000", "2", "41"),
    ("153000", "6", "56"), ("154000", "1", "51"), ("154000", "2", "51"), ("160000", "1", "52"),
    ("160000", "2", "52"), ("180000", "1", "54"), ("180000", "2", "54"), ("200000", "6", "58"),
)  # fmt: skip
#: price below which a step is valid (KRX since 2023-01-25)
_STEPS = ((2_000, 1), (5_000, 5), (20_000, 10), (50_000, 50), (200_000, 100), (500_000, 500))


class Frame(NamedTuple):
    """One data frame, taken apart."""

    tr: str
    key: str  # without its blanks
    body: Mapping[str, Any]

    @property
    def stream(self) -> str:
        """Return what faults and ready object call its stream."""
        return f"{self.tr}:{self.key}"

    @property
    def code(self) -> str:
        """Return the code of the stock it is about, "" for one about none.

        NXT and unified interruptions have one key for all stocks; the code is in the body.
        """
        if self.tr == "JIF":
            return ""
        code = code_of(self.tr, self.key)
        return code if code.strip("0") else str(self.body.get("ref_shcode", "")).strip()

    @property
    def clock(self) -> str:
        """Return its time of day, "" where it has none that can be read."""
        text = str(self.body.get(TIME_FIELDS[self.tr], ""))
        return text if len(text) == 6 and text.isdecimal() else ""


def frame_of(message: bytes) -> Frame | None:
    """Return the data frame of a message; None for replies, garbage, other venues' products."""
    try:
        said = orjson.loads(message)
        header, body = said["header"], said["body"]
        if "rsp_cd" in header or header["tr_cd"] not in TIME_FIELDS or not isinstance(body, dict):
            return None
        return Frame(header["tr_cd"], header["tr_key"].strip(), body)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def code_of(tr: str, key: str) -> str:
    """Return the code of a stock that a TR's key means."""
    return key[1:] if tr in PADDED else key


def step_of(price: int) -> int:
    """Return the price step valid at a price."""
    return next((step for bound, step in _STEPS if price < bound), 1_000)


class Stock(NamedTuple):
    """One stock as served.

    recorded  its code in the capture, equal to `code` but for aliases
    """

    code: str
    recorded: str


class LsCapture:
    """A capture in memory.

    script  all data frames of Korean stocks, in the order of play
    lists   recorded answers of t8436 and t9945 by name, such as `t8436:0`
    Raises CaptureError for a capture without a frame that could be played.
    """

    def __init__(self, capture: Capture) -> None:
        self.script = Script()
        self.lists: dict[str, bytes] = {}
        received: list[Received] = []
        for event in capture.events(tolerant=True):
            if isinstance(event, Received) and frame_of(event.payload) is not None:
                received.append(event)
            elif isinstance(event, Response):
                self._list(event)
        if not received:
            raise CaptureError(f"{capture.files[0]}: no frame of a Korean stock; expected TRs such as S3_")
        if received[-1].ts_recv_ns < _UNDATED_NS:
            received = list(_session(received))
        self.frames: list[Frame] = []
        for event in received:
            frame = frame_of(event.payload)
            assert frame is not None
            self.script.add(event.ts_recv_ns, frame.stream, event.payload)
            self.frames.append(frame)
        self.codes = list(filter(None, dict.fromkeys(frame.code for frame in self.frames)))

    def _list(self, event: Response) -> None:
        name = event.url.partition("#")[2]
        if event.status == 200 and name.startswith(("t8436", "t9945")):
            self.lists.setdefault(name, event.body)

    def clones(self, count: int) -> list[Clone]:
        """Return so many copies of the recorded stocks, in turn, under codes of their own."""
        named = [name.partition(":") for name in self.script.names]
        own = {code_of(tr, key) for tr, _, key in named}
        codes = [code for code in self.codes if code in own]
        clones: list[Clone] = []
        for number in range(count):
            recorded, alias = codes[number % len(codes)], f"{number:04}A0"
            streams = {
                stream: f"{tr}:{key.replace(recorded, alias)}"
                for stream, (tr, _, key) in enumerate(named)
                if code_of(tr, key) == recorded
            }
            replacements = [
                (f'"{letter}{recorded}'.encode(), f'"{letter}{alias}'.encode()) for letter in LETTERS
            ]
            clones.append(Clone(alias, recorded, streams, replacements))
        return clones

    # instruments

    def entries(self, stocks: Iterable[Stock], ended: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return the rows of t8436: those recorded, or what the frames tell of each stock.

        ended  codes that are listed no more
        """
        gone = set(ended)
        recorded = {row["shcode"]: row for name in self.lists for row in self._rows(name, "t8436")}
        return [
            {**(recorded.get(stock.recorded) or self._derived(stock.recorded)), "shcode": stock.code}
            for stock in stocks
            if stock.code not in gone
        ]

    def on_nxt(self, stock: Stock) -> bool:
        """Return whether a stock is traded on NXT."""
        rows = [row for name in self.lists for row in self._rows(name, "t9945")]
        if rows:
            return any(row["shcode"] == stock.recorded and row.get("nxt_chk") == "1" for row in rows)
        return any(frame.tr in PADDED and frame.code == stock.recorded for frame in self.frames)

    def _rows(self, name: str, tr: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        if name.startswith(tr):
            rows = orjson.loads(self.lists[name]).get(f"{tr}OutBlock", [])
        return rows

    def _derived(self, code: str) -> dict[str, Any]:
        """Return what frames tell: the market by the TR, the base price by a trade and its change."""
        of_stock = [frame for frame in self.frames if frame.code == code]
        base = next(filter(None, map(_base_price, of_stock)), 0)
        width = base * 3 // 10
        width -= width % step_of(base)
        return {
            "hname": code,
            "shcode": code,
            "expcode": "",
            "etfgubun": "1" if any(frame.tr == "B7_" for frame in of_stock) else "0",
            "uplmtprice": base + width,
            "dnlmtprice": base - width,
            "jnilclose": base,
            "memedan": "00001",
            "recprice": base,
            "gubun": "2" if any(frame.tr in _KOSDAQ for frame in of_stock) else "1",
            "bu12gubun": "01",
            "spac_gubun": "N",
            "filler": "",
        }


def _base_price(frame: Frame) -> int:
    """Return the price that a day's limits are counted from, as far as a frame tells; 0 if it does not."""
    body = frame.body
    if frame.tr in TRADES:
        return int(body["price"]) - _signed(body["sign"], body["change"])
    if frame.tr in EXPECTED:
        return int(body["yeprice"]) - _signed(body["jnilysign"], body["jnilchange"])
    return int(body["bidho1"]) if frame.tr in BOOKS else 0


def _signed(sign: str, change: str) -> int:
    return -int(change) if sign in ("4", "5") else int(change)


def _session(received: Sequence[Received]) -> Iterator[Received]:
    """Yield single frames in the order of a day: those without a time first, market states between them."""
    states = [
        (clock, orjson.dumps({"header": {"tr_cd": "JIF", "tr_key": "0"},
                              "body": {"jangubun": market, "jstatus": status}}))
        for clock, market, status in _SESSION
    ]  # fmt: skip
    frames = [(frame.clock, event.payload) for event in received if (frame := frame_of(event.payload))]
    ordered = sorted([*states, *frames], key=lambda timed: timed[0])
    for number, (_, payload) in enumerate(ordered):
        yield Received(number * STEP_NS, payload, "")
