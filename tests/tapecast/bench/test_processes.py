"""Children measured from outside, in places of their own."""

import socket
import time
from collections.abc import Iterator

import pytest

from tapecast.bench.figures import BenchError
from tapecast.bench.processes import Child, Place, Relay, own_place


@pytest.fixture
def place() -> Iterator[Place]:
    with own_place() as made:
        yield made


def test_a_place_is_nobody_elses_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPECAST__MULTICAST__TTL", "7")
    monkeypatch.setenv("TAPECAST_CONFIG", "/elsewhere")
    with own_place() as one, own_place() as other:
        assert (one.folder, one.shm, one.port) != (other.folder, other.shm, other.port)
        assert one.environ["TAPECAST_STATE"].startswith(str(one.folder))
        assert "TAPECAST_CONFIG" not in one.environ
        assert "TAPECAST__MULTICAST__TTL" not in one.environ
        one.shm.mkdir()
    assert not one.folder.exists()
    assert not one.shm.exists()


def test_the_cpu_of_a_child_is_its_own(place: Place) -> None:
    (place.folder / "busy.py").write_text(
        "import time, resource\nwhile time.process_time() < 0.2: pass\ntime.sleep(60)\n"
    )
    environ = {**place.environ, "PYTHONPATH": str(place.folder)}
    with Child(["busy"], Place(place.folder, place.shm, place.port, environ)) as child:
        deadline = time.monotonic() + 60
        while child.cpu_ns() < 0.2e9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert 0.2e9 <= child.settled_cpu_ns() < 0.5e9
        assert 2**20 < child.rss_anon_bytes() < 2**28
        assert child.alive
    assert not child.alive


def test_a_child_that_ends_is_told_with_its_last_words(place: Place) -> None:
    with Child(["nothing_of_that_name", "word"], place) as child:
        deadline = time.monotonic() + 60
        while child.alive:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        error = child.broke("did not start")
    assert isinstance(error, BenchError)
    assert "nothing_of_that_name word: did not start (exit code 1)" in str(error)
    assert "No module named" in str(error)


def test_a_relay_passes_everything_on_and_shows_it() -> None:
    asked: list[bytes] = []
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as target:
        url = f"http://127.0.0.1:{target.getsockname()[1]}"
        with Relay(url, to_target=asked.append, to_client=told.append) as relay:
            assert relay.url.startswith("http://127.0.0.1:")
            with socket.create_connection(("127.0.0.1", int(relay.url.rpartition(":")[2]))) as client:
                relay.poll(1.0)
                served, _ = target.accept()
                client.sendall(b"GET /")
                relay.poll(1.0)
                assert served.recv(100) == b"GET /"
                served.sendall(b"200")
                relay.poll(1.0)
                assert client.recv(100) == b"200"
                served.close()
                relay.poll(1.0)
                assert client.recv(100) == b""
                relay.poll(0.0)
    assert (asked, told) == ([b"GET /"], [b"200"])
