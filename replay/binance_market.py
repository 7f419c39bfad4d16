"""One of Binance's markets, as the futures are: its paths, limits and weights, the words of its answers.

Source: venues/binance.md sections 1 to 8; weights and limits of trades, tickers and the premium index: the
venue's REST pages "Market Data" of USD-M and COIN-M, read 2026-11.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from replay.binance_trades import Trade
from replay.venue import Answer, Refused, Rules

#: the path of a handshake: streams in it, or in the query
UNROUTED = r"/(?:ws(?:/(?P<raw>.+))?|(?P<combined>stream))/?"
NUMBER = re.compile(r"[0-9]{1,20}")


class Target(NamedTuple):
    """What the URL of a handshake asks for."""

    names: list[str]  # streams
    combined: bool  # whether messages are wrapped in `{"stream":...,"data":...}`
    public: bool | None  # USD-M: whether it carries the public class or the other one
    microseconds: bool  # whether times are in microseconds


class WrongRequest(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.answer = error_answer(400, code, text)


def error_answer(status: int, code: int, text: str) -> Answer:
    """Return an error in the venue's form."""
    return Answer(status, orjson.dumps({"code": code, "msg": text}))


class Market:
    """One market. What the futures have in common stands here; spot has its own ways.

    Methods are pure. Those that look at a request raise WrongRequest for what cannot be used.
    """

    name: str
    prefix: str  # of REST paths
    quote_assets: tuple[str, ...]
    derived_entry: Callable[[str, str, int, int], dict[str, Any]]  # see binance_info
    trade_row: Callable[[Trade, Mapping[str, Any]], dict[str, object]]  # see binance_trades
    head: Mapping[str, Any] = {}  # of a derived instrument list
    status_key = "status"
    weight_limit = 2_400  # a minute
    max_levels = 1_000  # of a REST book
    default_levels = "500"
    rules = Rules(
        messages_per_s=10,
        ping_every_s=180,
        pong_within_s=600,
        lifetime_s=86_400,
        pong_echoes=False,
        attempts_per_5min=None,
    )
    #: a symbol's depth at any speed
    depth = re.compile(r"([^@]+)@depth(?:@(?:0|100|500)ms)?")
    #: endpoint -> weight with a symbol, without; 1 where it is not named
    weights: Mapping[str, tuple[int, int]] = {
        "aggTrades": (20, 20),
        "historicalTrades": (20, 20),
        "ticker/24hr": (1, 40),
        "ticker/bookTicker": (2, 5),
        "ticker/price": (1, 2),
    }
    #: endpoint -> number of trades by default, at most
    trades_limits: Mapping[str, tuple[int, int]] = {"aggTrades": (500, 1_000), "historicalTrades": (100, 500)}
    #: valid limits of a REST book -> weight
    levels_weights: Mapping[int, int] = {5: 2, 10: 2, 20: 2, 50: 2, 100: 5, 500: 10, 1_000: 20}
    too_many = (
        "Too many requests; current limit is {} requests per minute. "
        "Please use the websocket for live updates to avoid polling the API."
    )
    banned = (
        "Way too many requests; IP banned until {}. Please use the websocket for live updates to avoid bans."
    )
    path = re.compile(UNROUTED)  # of a handshake
    paths = "/ws or /stream"  # in words

    # handshakes

    def target(self, text: str) -> Target:
        """Return what path and query of a handshake ask for. Raises Refused."""
        url = urlsplit(text)
        match = self.path.fullmatch(unquote(url.path))
        if match is None:
            raise Refused(404, f"{url.path}: expected {self.paths}")
        query = parse_qs(url.query)
        combined = match["combined"] is not None
        joined = query.get("streams", [""])[0] if combined else match["raw"] or ""
        names = [name for name in joined.split("/") if name]
        return Target(names, combined, self.public(match), self.microseconds(query))

    def public(self, match: re.Match[str]) -> bool | None:  # noqa: ARG002 (USD-M alone has routes)
        """Return the class of streams that a path stands for, None where there are none."""
        return None

    def microseconds(self, query: Mapping[str, list[str]]) -> bool:  # noqa: ARG002 (spot alone has units)
        """Return whether a handshake asks for times in microseconds."""
        return False

    def carries(self, name: str, public: bool | None) -> bool:  # noqa: ARG002 (USD-M alone has classes)
        """Return whether a connection of that class carries stream `name`."""
        return True

    def valid_id(self, number: object) -> bool:
        """Return whether a request may have this id."""
        return isinstance(number, int) and not isinstance(number, bool) and number >= 0

    def shutdown(self, now_ns: int, *, microseconds: bool) -> bytes | None:  # noqa: ARG002 (spot alone tells)
        """Return the event that tells a connection of maintenance: none on futures."""
        return None

    # REST

    def weight(self, endpoint: str, query: Mapping[str, str]) -> int:
        """Return what a request costs."""
        limit = query.get("limit", self.default_levels)
        if endpoint == "depth" and NUMBER.fullmatch(limit):
            return self.levels_weight(int(limit))
        one, many = self.weights.get(endpoint, (1, 1))
        return one if "symbol" in query else many

    def levels_weight(self, levels: int) -> int:
        """Return what a book of so many levels costs."""
        return self.levels_weights.get(levels, 1)

    def symbol(self, query: Mapping[str, str]) -> str:
        """Return the mandatory parameter `symbol`."""
        if not query.get("symbol"):
            raise WrongRequest(
                -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."
            )
        return query["symbol"]

    def symbols(self, query: Mapping[str, str]) -> list[str] | None:  # noqa: ARG002 (spot alone can be asked)
        """Return the symbols that a request for the instrument list names; None for all."""
        return None

    def lists(self, entry: Mapping[str, Any], query: Mapping[str, str]) -> bool:  # noqa: ARG002 (the same)
        """Return whether such a request asks for this instrument."""
        return True

    def number(self, query: Mapping[str, str], key: str) -> int | None:
        """Return an optional parameter that is a number."""
        text = query.get(key)
        if text is not None and not NUMBER.fullmatch(text):
            raise WrongRequest(
                -1102, f"Mandatory parameter '{key}' was not sent, was empty/null, or malformed."
            )
        return None if text is None else int(text)

    def levels(self, query: Mapping[str, str]) -> int:
        """Return how many levels a side a request for a book asks for."""
        limit = query.get("limit", self.default_levels)
        if not NUMBER.fullmatch(limit) or int(limit) not in self.levels_weights:
            raise WrongRequest(-4021, f"'{limit}' is not valid depth limit.")
        return int(limit)

    def n_trades(self, endpoint: str, query: Mapping[str, str]) -> int:
        """Return how many trades a request asks for."""
        default, most = self.trades_limits[endpoint]
        limit = self.number(query, "limit")
        if limit is not None and not 1 <= limit <= most:
            raise WrongRequest(-1130, "Data sent for parameter 'limit' is not valid.")
        return default if limit is None else limit

    def ended_status(self, entry: Mapping[str, Any]) -> str:  # noqa: ARG002 (COIN-M tells kinds apart)
        """Return the status of an instrument that trades no more."""
        return "SETTLING"

    def unknown_path(self, path: str) -> Answer:
        """Return the answer for a path that is not served."""
        return error_answer(404, -5000, f"Path {path}, Method GET is invalid")

    def refusal(self, status: int, retry_after_s: int) -> Answer:
        """Return the venue's own 429, 418 or 503."""
        headers = {"Retry-After": str(retry_after_s)}
        if status not in {429, 418}:
            answer = error_answer(status, -1016, "This service is no longer available.")
        else:
            until_ms = int((time.time() + retry_after_s) * 1_000)
            limit = self.weight_limit
            text = self.too_many.format(limit) if status == 429 else self.banned.format(until_ms)
            answer = error_answer(status, -1003, text)
        return answer._replace(headers=headers)
