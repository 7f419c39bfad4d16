"""Binance's three markets: where each differs. Source: as of binance_market, and the REST page of spot."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from replay import binance_info, binance_trades
from replay.binance_market import NUMBER, UNROUTED, Market, WrongRequest
from replay.venue import Answer, Rules

#: what the path /public of USD-M carries, and its old unrouted one; /market carries everything else
_PUBLIC_CLASS = re.compile(r"[^@]+@(?:bookTicker|trade|depth\d*(?:@\d+ms)?|rpiDepth@500ms)|!bookTicker")
_SPOT_SYMBOL = re.compile(r"(?:[-.]|[^\Wa-z]){1,50}")
_SPOT_SYMBOLS = re.compile(rf'\["{_SPOT_SYMBOL.pattern}"(?:,"{_SPOT_SYMBOL.pattern}")*\]')
_SPOT_ID = re.compile(r"[A-Za-z0-9]{1,36}")
_NGINX_404 = (
    b"<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n"
    b"<center><h1>404 Not Found</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


class _UsdM(Market):
    name = "usdm"
    prefix = "/fapi/v1/"
    quote_assets = ("FDUSD", "USDT", "USDC", "BUSD", "USD1", "BTC", "ETH", "BNB")
    derived_entry = staticmethod(binance_info.usdm_entry)
    trade_row = staticmethod(binance_trades.usdm_row)
    head: Mapping[str, Any] = {"futuresType": "U_MARGINED", "assets": []}
    weights: Mapping[str, tuple[int, int]] = {**Market.weights, "premiumIndex": (1, 10)}

    path = re.compile("(?:/(?P<route>public|market))?" + UNROUTED)
    paths = "/public or /market, then /ws or /stream"

    def public(self, match: re.Match[str]) -> bool | None:
        """Return the class that the path stands for; the old unrouted one is public."""
        return match["route"] != "market"

    def carries(self, name: str, public: bool | None) -> bool:
        """Return whether a connection of that class carries stream `name`."""
        return (_PUBLIC_CLASS.fullmatch(name) is not None) is public


class _CoinM(Market):
    name = "coinm"
    prefix = "/dapi/v1/"
    quote_assets = ("USD",)
    derived_entry = staticmethod(binance_info.coinm_entry)
    trade_row = staticmethod(binance_trades.coinm_row)
    status_key = "contractStatus"
    weights: Mapping[str, tuple[int, int]] = {**Market.weights, "premiumIndex": (10, 10)}

    def ended_status(self, entry: Mapping[str, Any]) -> str:
        """Return that of a perpetual or of a delivery contract."""
        return "CLOSE" if entry["contractType"] == "PERPETUAL" else "DELIVERED"


class _Spot(Market):
    name = "spot"
    prefix = "/api/v3/"
    quote_assets = (
        "FDUSD", "TUSD", "BUSD", "USDT", "USDC", "USDP", "USD1", "BTC", "ETH", "BNB", "XRP", "TRX", "DOGE",
        "DAI", "EURI", "EUR", "GBP", "AUD", "BRL", "TRY", "RUB", "UAH", "NGN", "ZAR", "PLN", "RON", "ARS",
        "JPY", "MXN", "COP", "CZK", "IDRT", "BIDR", "BKRW", "BVND",
    )  # fmt: skip
    derived_entry = staticmethod(binance_info.spot_entry)
    trade_row = staticmethod(binance_trades.spot_row)
    weight_limit = 6_000
    max_levels = 5_000
    default_levels = "100"
    rules = Rules(
        messages_per_s=5,
        ping_every_s=20,
        pong_within_s=60,
        lifetime_s=86_400,
        pong_echoes=True,
        attempts_per_5min=300,
    )
    depth = re.compile(r"([^@]+)@depth(?:@(?:100|1000)ms)?")
    weights: Mapping[str, tuple[int, int]] = {
        "aggTrades": (4, 4),
        "exchangeInfo": (20, 20),
        "historicalTrades": (25, 25),
        "ticker/24hr": (2, 80),
        "ticker/bookTicker": (2, 4),
        "ticker/price": (2, 4),
    }
    trades_limits: Mapping[str, tuple[int, int]] = {
        "aggTrades": (500, 1_000),
        "historicalTrades": (500, 1_000),
    }

    too_many = (
        "Too much request weight used; current limit is {} request weight per 1 MINUTE. "
        "Please use WebSocket Streams for live updates to avoid polling the API."
    )
    banned = (
        "Way too much request weight used; IP banned until {}. "
        "Please use WebSocket Streams for live updates to avoid bans."
    )

    def microseconds(self, query: Mapping[str, list[str]]) -> bool:
        return query.get("timeUnit", [""])[0].upper() == "MICROSECOND"

    def valid_id(self, number: object) -> bool:
        """Return whether it is null, a signed number of 64 bits or a short word."""
        if isinstance(number, int) and not isinstance(number, bool):
            return -(2**63) <= number < 2**63
        return number is None or (isinstance(number, str) and _SPOT_ID.fullmatch(number) is not None)

    def shutdown(self, now_ns: int, *, microseconds: bool) -> bytes | None:
        """Return `serverShutdown`."""
        return b'{"e":"serverShutdown","E":%d}' % (now_ns // (1_000 if microseconds else 1_000_000))

    def levels_weight(self, levels: int) -> int:
        return next((weight for most, weight in ((100, 5), (500, 25), (1_000, 50)) if levels <= most), 250)

    def symbol(self, query: Mapping[str, str]) -> str:
        """Return the mandatory parameter `symbol`, in upper case."""
        text = super().symbol(query)
        if not _SPOT_SYMBOL.fullmatch(text):
            legal = r"^[\w\-._&&[^a-z]]{1,50}$"
            raise WrongRequest(
                -1100, f"Illegal characters found in parameter 'symbol'; legal range is '{legal}'."
            )
        return text

    def symbols(self, query: Mapping[str, str]) -> list[str] | None:
        """Return the symbols of `symbol` or of the list `symbols`."""
        if "symbols" in query:
            if not _SPOT_SYMBOLS.fullmatch(query["symbols"]):
                raise WrongRequest(
                    -1100,
                    "Illegal characters found in parameter 'symbols'; legal range is "
                    r"""'^\["[\w\-._&&[^a-z]]{1,50}"(,"[\w\-._&&[^a-z]]{1,50}"){0,}\]$'.""",
                )
            return list(orjson.loads(query["symbols"]))
        return [self.symbol(query)] if "symbol" in query else None

    def lists(self, entry: Mapping[str, Any], query: Mapping[str, str]) -> bool:
        """Return whether the instrument has the wanted status."""
        return query.get("symbolStatus") in {None, entry["status"]}

    def number(self, query: Mapping[str, str], key: str) -> int | None:
        """Return an optional parameter that is a number."""
        text = query.get(key)
        if text is not None and not NUMBER.fullmatch(text):
            raise WrongRequest(
                -1100, f"Illegal characters found in parameter '{key}'; legal range is '^[0-9]{{1,20}}$'."
            )
        return None if text is None else int(text)

    def levels(self, query: Mapping[str, str]) -> int:
        """Return how many levels a side a request for a book asks for; more than all are all."""
        limit = self.number(query, "limit")
        if limit == 0:
            raise WrongRequest(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(int(self.default_levels) if limit is None else limit, self.max_levels)

    def n_trades(self, endpoint: str, query: Mapping[str, str]) -> int:
        """Return how many trades a request asks for; more than the most are the most."""
        default, most = self.trades_limits[endpoint]
        limit = self.number(query, "limit")
        if limit == 0:
            raise WrongRequest(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(default if limit is None else limit, most)

    def ended_status(self, entry: Mapping[str, Any]) -> str:  # noqa: ARG002 (all are alike)
        """Return BREAK."""
        return "BREAK"

    def unknown_path(self, path: str) -> Answer:  # noqa: ARG002 (the page names none)
        """Return the web server's own page: not every error is JSON."""
        return Answer(404, _NGINX_404, content_type="text/html")


SPOT, USDM, COINM = _Spot(), _UsdM(), _CoinM()
MARKETS: Mapping[str, Market] = {market.name: market for market in (SPOT, USDM, COINM)}
