"""Judges of the network, and their probes against sockets of this host."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapecast import network_checks as network
from tapecast.network_checks import Echo, Interface, Reach, Reaching, Route
from udp_protocol.settings import Multicast

MIB = 2**20
LO = Interface("127.0.0.1", "lo", 0x9)
ETH = Interface("10.0.0.9", "eth1", 0x1003)
#: two interfaces, the default route by eth0, 239.0.0.0/8 by eth1, and one for it by eth2 that is down
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t000000EF\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
eth2\t000BFFEF\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.parametrize(
    ("found", "state", "mend"),
    [
        (LO, "ok", ""),
        (ETH, "ok", ""),
        (Interface("10.0.0.9", "", 0), "fail", "ip -brief address"),
        (Interface("10.0.0.9", "eth1", 0x1002), "fail", "ip link set dev eth1 up"),
        (Interface("10.0.0.9", "eth1", 0x3), "fail", "ip link set dev eth1 multicast on"),
    ],
)
def test_the_interface(found: Interface, state: str, mend: str) -> None:
    check = network.interface(found)
    assert check.state == state
    assert check.mend.startswith(mend)
    assert found.address in check.found


def test_the_interface_is_found_by_its_address() -> None:
    found = network.interface_of("127.0.0.1")
    assert found.name == "lo"
    assert found.flags & 0x9 == 0x9
    assert network.interface_of("192.0.2.77") == Interface("192.0.2.77", "", 0)


def test_the_route_with_the_longest_mask_that_is_up() -> None:
    assert network.route_of("239.255.11.0", ROUTES, 2) == Route("eth1", strict=False)
    assert network.route_of("10.1.1.1", ROUTES, 1) == Route("eth0", strict=True)
    assert network.route_of("10.1.1.1", "\n".join(ROUTES.splitlines()[:2]), 1) == Route("eth0", strict=False)
    assert network.route_of("10.1.1.1", "", 0) == Route("", strict=False)


@given(st.text("eth01 \t\nEF0G", max_size=120))
def test_any_table_of_routes_is_read(table: str) -> None:
    network.route_of("239.255.11.0", f"header\n{table}", 0)


@pytest.mark.parametrize(
    ("found", "way", "state", "mend"),
    [
        (LO, Route("eth0", strict=True), "ok", ""),
        (ETH, Route("eth1", strict=False), "ok", ""),
        (ETH, Route("", strict=False), "ok", ""),
        (ETH, Route("eth0", strict=False), "warn", "ip route add 239.255.11.0/24 dev eth1"),
        (ETH, Route("eth1", strict=True), "warn", "sysctl -w net.ipv4.conf.eth1.rp_filter=2"),
    ],
)
def test_the_route(found: Interface, way: Route, state: str, mend: str) -> None:
    check = network.route(found, "239.255.11", way)
    assert (check.state, check.mend) == (state, mend)


def test_a_datagram_comes_back_on_loopback() -> None:
    echo = network.echo("239.255.11", Multicast())
    assert echo.problem == ""
    assert 0 <= echo.took_ms < 1000
    assert echo.rcvbuf_bytes > 0
    assert network.multicast("A", echo).state == "ok"


def test_what_keeps_it_from_coming_back_is_said() -> None:
    check = network.multicast("A", network.echo("239.255.11", Multicast(interface="192.0.2.77")))
    assert check.state == "fail"
    assert "192.0.2.77" in check.found
    lost = network.multicast("B", Echo("239.255.12.254", 4000))
    assert (lost.name, lost.state) == ("multicast B", "fail")
    assert "did not come back within 1 s" in lost.found
    assert "iptables" in lost.mend


@pytest.mark.parametrize(
    ("granted", "rmem_max", "state", "found"),
    [
        (64 * MIB, 64 * MIB, "ok", "64.0 MiB granted"),
        (64 * MIB, 4 * MIB, "ok", "by CAP_NET_ADMIN: net.core.rmem_max is 4.0 MiB"),
        (
            4 * MIB,
            4 * MIB,
            "warn",
            "4.0 MiB granted of 64.0 MiB: a burst may be lost; net.core.rmem_max is 4.0",
        ),
        (4 * MIB, -1, "warn", "net.core.rmem_max is hidden"),
    ],
)
def test_the_receive_buffer(granted: int, rmem_max: int, state: str, found: str) -> None:
    check = network.receive_buffer(64 * MIB, granted, rmem_max)
    assert check.state == state
    assert found in check.found
    assert (check.mend != "") == (state == "warn")
    if check.mend:
        assert check.mend.startswith("sysctl -w net.core.rmem_max=67108864")
        assert "CAP_NET_ADMIN" in check.mend


def test_the_backlog() -> None:
    assert [network.backlog(packets).state for packets in (10_000, 1000, -1)] == ["ok", "warn", "info"]
    assert network.backlog(1000).mend == "sysctl -w net.core.netdev_max_backlog=10000"
    assert network.sysctl("net.ipv4.conf.all.rp_filter") >= 0
    assert network.sysctl("net.no.such_thing") == -1


@contextmanager
def web_server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_how_far_a_request_comes() -> None:
    with web_server(404) as place:
        for url in (f"http://{place}", f"ws://{place}/stream?x=1"):
            answer = network.reach(url, 3.0)
            assert (answer.status, answer.problem) == (404, "")
            assert answer.took_ms > 0
        assert network.reach(f"wss://{place}", 3.0).problem.startswith("TLS: ")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert network.reach(url, 0.05).problem == "HTTP: timed out"
    assert network.reach(url, 3.0).problem == "TCP: Connection refused"
    assert network.reach("http://no.such.host.invalid", 3.0).problem.startswith("DNS: ")


@pytest.mark.parametrize("url", ["http://x:port", "https://", "ws://[::1", "http://" + "x" * 70 + ".y"])
def test_an_address_that_is_none_is_said_and_not_raised(url: str) -> None:
    assert network.reach(url, 1.0).problem != ""


def test_many_are_asked_at_once_and_the_mute_ones_left_behind() -> None:
    with web_server(200) as place, socket.create_server(("127.0.0.1", 0)) as mute:
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
        begun = time.monotonic()
        reaching = Reaching({"mute": silent, "well": f"http://{place}", "mute too": silent}, 0.3)
        answers = reaching.answers()
        assert time.monotonic() - begun < 5  # not one after the other
    assert list(answers) == ["mute", "well", "mute too"]
    assert answers["well"].status == 200
    assert {answers[name].status for name in ("mute", "mute too")} == {0}
    assert all(answers[name].problem for name in ("mute", "mute too"))


@pytest.mark.parametrize(
    ("reach", "state", "found"),
    [
        (Reach(200, 12.3), "ok", "fapi.example.com answers HTTP 200 in 12 ms"),
        (Reach(404, 12.3), "ok", "HTTP 404"),
        (Reach(451, 1.0), "warn", "HTTP 451 in 1 ms: the venue does not serve this place"),
        (Reach(418, 1.0), "warn", "banned"),
        (Reach(503, 1.0), "warn", "the venue is not well"),
        (Reach(problem="DNS: unknown"), "warn", "cannot be reached: DNS: unknown"),
        (Reach(problem="TCP: timed out"), "warn", "cannot be reached: TCP: timed out"),
    ],
)
def test_a_venue(reach: Reach, state: str, found: str) -> None:
    check = network.venue("binance usdm ws", "wss://fapi.example.com/stream", reach)
    assert check.state == state
    assert found in check.found
    assert bool(check.mend) == (state != "ok")
    if "DNS" in reach.problem:
        assert check.mend.startswith("getent hosts fapi.example.com")
    elif reach.problem:
        assert check.mend == "curl -v https://fapi.example.com/stream"


def test_the_database_is_missed_only_where_it_was_named() -> None:
    url, refused = "http://localhost:9000", Reach(problem="TCP: Connection refused")
    assert network.quest_db(url, Reach(200, 3.0), named=False).state == "ok"
    embedded = network.quest_db(url, refused, named=False)
    assert (embedded.state, embedded.mend) == ("info", "")
    assert "the embedded store is used" in embedded.found
    assert network.quest_db(url, refused, named=True).state == "warn"
    assert "HTTP 500" in network.quest_db(url, Reach(500), named=True).found
