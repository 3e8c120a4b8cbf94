"""The page on a port of this machine: what is answered, to whom, and how it ends."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import webbrowser
from urllib.parse import urlsplit

import pytest

from manual_mlp.explain.serve import serve, served

PAGE = "<!DOCTYPE html>\n<p>δ = ∂J/∂Y ⊙ f′(Z)</p>"


@pytest.fixture
def ask():
    """Serve the page, and ask for something."""
    with served(PAGE) as address:

        def ask(path="/", method="GET", **headers):
            connection = http.client.HTTPConnection(urlsplit(address).netloc)
            connection.putrequest(method, path, skip_host=True)
            for name, value in ({"Host": urlsplit(address).netloc} | headers).items():
                for one in value if isinstance(value, list) else [value]:
                    connection.putheader(name, one)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read()
            connection.close()
            return response, body

        ask.address = address
        yield ask


def test_the_page_is_served_at_the_root_alone(ask):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", ask.address)
    response, body = ask()
    assert response.status == 200
    assert body == PAGE.encode()
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Length"] == str(len(body))
    assert response.headers["Cache-Control"] == "no-store"
    assert ask("/?n=1")[1] == PAGE.encode()
    response, body = ask("/favicon.ico")
    assert (response.status, body) == (204, b"")
    for path in ("/index.html", "/page", "/../etc/passwd", "/%2e%2e/pyproject.toml", "/favicon.ico/", "*"):
        response, body = ask(path)
        assert response.status == 404, path
        assert PAGE.encode() not in body


def test_head_is_answered_without_the_page(ask):
    response, body = ask(method="HEAD")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(PAGE.encode()))
    assert ask("/other", "HEAD")[0].status == 404
    # A client leaves out what stands behind the head, so this one reads all that is sent.
    with socket.create_connection((urlsplit(ask.address).hostname, urlsplit(ask.address).port)) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.makefile("rb").read().endswith(b"\r\n\r\n")
    response, body = ask(method="POST")
    assert response.status == 501
    assert PAGE.encode() not in body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8000", "LOCALHOST"])
def test_a_host_of_this_machine_is_answered(ask, host):
    assert ask(Host=host)[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "127.0.0.1.example.com",
        "localhost.example.com",
        "a@localhost",
        "localhost:",
        "",
        [],
        ["a", "localhost"],
    ],
)
def test_another_host_is_refused(ask, host):
    for path in ("/", "/favicon.ico", "/other"):
        response, body = ask(path, Host=host)
        assert response.status == 403
        assert PAGE.encode() not in body


def test_several_ask_at_once(ask):
    # The first connection says nothing, as a browser's spare one does.
    with socket.create_connection((urlsplit(ask.address).hostname, urlsplit(ask.address).port)):
        assert ask()[1] == PAGE.encode()


def test_a_reader_who_goes_away_is_no_error(capfd):
    with served(PAGE * 200_000) as address:
        for _ in range(3):
            with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.recv(1)
    assert capfd.readouterr().err == ""


def test_nothing_is_logged_and_the_socket_is_closed_in_the_end(capfd):
    with served(PAGE) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        for path in ("/", "/other"):
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)).close()
    # The port can be had again at once.
    with served(PAGE, urlsplit(address).port) as again:
        assert again == address


def test_a_port_that_cannot_be_had_is_an_error_in_words():
    with served(PAGE) as address:
        port = urlsplit(address).port
        with pytest.raises(ValueError, match=f"^expected a free port, got {port}: Address already in use$"):
            serve(PAGE, port=port, open_browser=False)
    with pytest.raises(ValueError, match=r"^expected a free port, got 65536: .*0-65535"):
        serve(PAGE, port=65536, open_browser=False)


def test_it_says_where_opens_the_page_and_ends_quietly(monkeypatch, capfd):
    opened = []

    def open(address):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("GET", "/")
        opened.append((address, connection.getresponse().read()))
        connection.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(webbrowser, "open", open)
    before = threading.active_count()
    assert serve(PAGE) is None
    ((address, body),) = opened
    assert body == PAGE.encode()
    assert capfd.readouterr() == (f"serving {address} (Ctrl-C to stop)\n", "")
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)).close()


def test_ctrl_c_ends_it_in_a_process_of_its_own():
    code = f"from manual_mlp.explain.serve import serve; serve({PAGE!r}, open_browser=False)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        address = re.fullmatch(rb"serving (http://127\.0\.0\.1:\d+/) \(Ctrl-C to stop\)\n", process.stdout.readline())[
            1
        ]
        connection = http.client.HTTPConnection(urlsplit(address.decode()).netloc)
        connection.request("GET", "/")
        assert connection.getresponse().read() == PAGE.encode()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"")
        assert process.returncode == 0
