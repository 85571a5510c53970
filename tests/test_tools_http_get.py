"""http_get: only the public internet, at the address that was checked, in bounded time and size."""

from __future__ import annotations

import gzip
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from edgellm_tools import http_get as http_module
from edgellm_tools.addresses import is_neighbour, is_public
from edgellm_tools.http_get import Policy, check_url, fetch, http_get
from edgellm_tools.plain_text import html_to_text

from edgellm.errors import Cancelled, ToolError
from edgellm.toolbox.context import ToolContext

CLOSED = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254
    172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1
    198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::8.8.8.8 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 2002:7f00:1::1 2002:808:808::1 3fff::1 5f00::1 fc00::1
    fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 4000::1
""".split()  # noqa: SIM905
OPEN = "1.1.1.1 8.8.8.8 93.184.215.14 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 192.169.0.1 223.255.255.254 "
OPEN += "2606:4700:4700::1111 2a00:1450:4001::1 2001:4860:4860::8888 2001:200::1"


@pytest.mark.parametrize("address", CLOSED)
def test_special_addresses_are_closed(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", OPEN.split())
def test_public_addresses_are_open(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("own", "peer", "answer"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2a00:1:2:3::7", "2a00:1:2:3:aaaa::9", True),
        ("2a00:1:2:3::7", "2a00:1:2:4::7", False),
    ],
)
def test_neighbours(own: str, peer: str, answer: bool) -> None:
    assert is_neighbour(ipaddress.ip_address(own), ipaddress.ip_address(peer)) is answer


BAD_URLS = [
    "",
    "example.org",
    "//example.org/",
    "file:///etc/passwd",
    "ftp://example.org/",
    "gopher://example.org/",
    "data:text/plain,x",
    "javascript:alert(1)",
    "http://",
    "http:///path",
    "https://user@example.org/",
    "https://user:password@example.org/",
    "https://@example.org/",
    "https://example.org@127.0.0.1/",
    "http://example.org:22/",
    "http://example.org:25/",
    "http://example.org:6379/",
    "http://example.org:99999/",
    "http://example.org:x/",
    "http://example.org/a b",
    "http://example.org/\r\nHost: other",
    "http://example.org\\@127.0.0.1/",
    "http://example.org/\x00",
    "http://[::1",
    "http://example.org/" + "x" * 3000,
]


@pytest.mark.parametrize("url", BAD_URLS, ids=lambda url: ascii(url)[:40])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ToolError):
        check_url(url)


LOCAL_URLS = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://017700000001/",
    "http://0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "https://localhost:8443/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[fe80::1%25lo]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://192.168.0.1/",
    "http://①②⑦.⓪.⓪.①/",
]


@pytest.mark.parametrize("url", LOCAL_URLS)
def test_local_urls_never_connect(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ToolError, match=r"not fetched|could not be resolved|not a host name"):
        http_get(url, call=ToolContext())


def names(table: dict[str, list[str]]) -> Any:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        answers = table[host]
        # A name whose second answer differs: rebinding.
        return [answers.pop(0)] if len(answers) > 1 else list(answers)

    resolve.asked = asked  # type: ignore[attr-defined]
    return resolve


class Site(BaseHTTPRequestHandler):
    seen: list[tuple[str, dict[str, str]]]
    stop: threading.Event

    def do_GET(self) -> None:
        type(self).seen.append((self.path, dict(self.headers)))
        path, _, query = self.path.partition("?")
        match path:
            case "/page":
                self.give("text/html; charset=latin-1", "<h1>Caf\xe9</h1><p>a&amp;b</p>".encode("latin-1"))
            case "/plain":
                self.give("text/plain", query.encode())
            case "/json":
                self.give("application/problem+json", b'{"a": 1}')
            case "/image":
                self.give("image/png", b"\x89PNG")
            case "/charset":
                self.give("text/plain; charset=nonsense", "é".encode())
            case "/punycode":
                self.give("text/plain; charset=punycode", b"a" * 500_000 + b"-" + b"ab" * 250_000)
            case "/gzip":
                self.give("text/plain", gzip.compress(b"packed"), {"Content-Encoding": "gzip"})
            case "/bomb":
                self.give("text/plain", gzip.compress(b"x" * 50_000_000), {"Content-Encoding": "gzip"})
            case "/brotli":
                self.give("text/plain", b"?", {"Content-Encoding": "br"})
            case "/big":
                self.give("text/plain", b"y" * 3_000_000)
            case "/redirect":
                self.send_response(302)
                self.send_header("Location", query)
                self.send_header("Content-Length", "0")
                self.end_headers()
            case "/loop":
                self.send_response(301)
                self.send_header("Location", "/loop")
                self.end_headers()
            case "/drip":
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                while not type(self).stop.wait(0.02):
                    self.wfile.write(b".")
            case "/hang":
                type(self).stop.wait(10)
            case _:
                self.send_error(404)

    def give(self, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": content_type, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Server]:
    handler = type("Site", (Site,), {"seen": [], "stop": threading.Event()})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    handler.stop.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def policy(site: Server, table: dict[str, list[str]] | None = None, **options: Any) -> Policy:
    """127.0.0.1 alone counts as public; the rest of loopback, and all else, is as closed as ever."""
    return Policy(
        is_allowed=lambda address: str(address) == "127.0.0.1" or is_public(address),
        is_neighbour=lambda own, peer: False,
        ports=frozenset({site.server_port, 80, 443}),
        resolve=names(table or {"site.test": ["127.0.0.1"]}),
        **options,
    )


def url(site: Server, path: str, host: str = "site.test") -> str:
    return f"http://{host}:{site.server_port}{path}"


def get(site: Server, path: str, chosen: Policy | None = None) -> http_module.Page:
    return fetch(url(site, path), ToolContext(), chosen or policy(site))


def seen(site: Server) -> list[tuple[str, dict[str, str]]]:
    return site.RequestHandlerClass.seen  # type: ignore[attr-defined,no-any-return]


def test_pages(site: Server) -> None:
    assert get(site, "/page").text == "# Café\na&b"
    assert get(site, "/json").text == '{"a": 1}'
    assert get(site, "/charset").text == "é"
    assert get(site, "/punycode").text.endswith("-" + "ab" * 250_000)
    assert get(site, "/gzip").text == "packed"
    assert get(site, "/plain?a=b%20c&d=[1]").text == "a=b%20c&d=[1]"


def test_what_is_sent(site: Server) -> None:
    get(site, "/plain?q=é x".replace(" ", "%20"))
    path, headers = seen(site)[0]
    assert path == "/plain?q=%C3%A9%20x"
    assert headers["Host"] == f"site.test:{site.server_port}"
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/image", "image/png"), ("/brotli", "compressed"), ("/missing", "404"), ("/loop", "redirects")],
)
def test_what_is_not_given(site: Server, path: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        get(site, path)


@pytest.mark.parametrize("path", ["/big", "/bomb"])
def test_size_is_capped(site: Server, path: str) -> None:
    page = get(site, path)
    assert len(page.text) == http_module.MAX_BODY_BYTES
    assert page.is_cut


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2/",
        "http://localhost/",
        "http://[::1]/",
        "http://169.254.169.254/latest/",
        "http://inner.test/",
        "//inner.test/x",
        "file:///etc/passwd",
        "http://user:x@site.test/",
        "http://site.test:22/",
        "ftp://site.test/",
    ],
)
def test_each_redirect_is_checked_again(site: Server, target: str) -> None:
    table = {name: [name.strip("[]")] for name in ("127.0.0.2", "169.254.169.254")}
    table |= {
        "::1": ["::1"],
        "localhost": ["127.0.0.2"],
        "inner.test": ["10.0.0.1"],
        "site.test": ["127.0.0.1"],
    }
    with pytest.raises(ToolError, match=r"not fetched|Only http"):
        get(site, f"/redirect?{target}", policy(site, table))
    assert [path for path, _ in seen(site)] == [f"/redirect?{target}"]


def test_redirects_are_followed(site: Server) -> None:
    page = get(site, "/redirect?/redirect?/plain?end")
    assert page.text == "end"
    assert page.url == url(site, "/plain?end")


def test_a_rebinding_name_is_asked_once_and_checked_again(site: Server) -> None:
    """The first answer is used for the connection; the second, at the redirect, is refused."""
    chosen = policy(site, {"site.test": ["127.0.0.1", "10.0.0.1", "10.0.0.1"]})
    with pytest.raises(ToolError, match="private"):
        get(site, "/redirect?/plain", chosen)
    assert len(seen(site)) == 1
    assert chosen.resolve.asked == ["site.test", "site.test"]  # type: ignore[attr-defined]


def test_of_mixed_answers_only_the_allowed_are_tried(site: Server) -> None:
    tried: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address[0])
        real(self, address)

    chosen = policy(site)
    chosen = Policy(
        is_allowed=chosen.is_allowed,
        is_neighbour=chosen.is_neighbour,
        ports=chosen.ports,
        resolve=lambda host, port: ["10.0.0.1", "::1", "127.0.0.1"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        assert get(site, "/plain?x", chosen).text == "x"
    assert tried == ["127.0.0.1"]


def test_this_machine_is_refused_even_at_a_public_address(site: Server) -> None:
    chosen = policy(site)
    chosen = Policy(is_allowed=chosen.is_allowed, ports=chosen.ports, resolve=chosen.resolve)
    with pytest.raises(ToolError, match="this machine"):
        get(site, "/plain", chosen)
    assert seen(site) == []


@pytest.mark.parametrize("path", ["/drip", "/hang"])
def test_time_is_limited_overall(site: Server, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_FETCH_S", 0.4)
    started = time.monotonic()
    with pytest.raises(ToolError, match="too long"):
        get(site, path)
    assert time.monotonic() - started < 2


def test_cancelling_ends_a_fetch(site: Server) -> None:
    context = ToolContext()
    threading.Timer(0.1, context.cancel_event.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(url(site, "/drip"), context, policy(site))
    assert time.monotonic() - started < 2


def test_a_slow_resolver_is_given_up(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_FETCH_S", 0.2)
    release = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        release.wait(5)
        return []

    with pytest.raises(ToolError, match="resolved"):
        fetch(url(site, "/plain"), ToolContext(), Policy(ports=frozenset({site.server_port}), resolve=slow))
    release.set()


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chosen = Policy(
        lambda address: True, lambda own, peer: False, frozenset({port}), resolve=lambda h, p: ["127.0.0.1"]
    )
    with pytest.raises(ToolError, match="could not be read: Connection refused"):
        fetch(f"http://site.test:{port}/", ToolContext(), chosen)


def test_environment_proxies_are_ignored(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert get(site, "/plain?x").text == "x"


def test_a_configured_proxy_is_asked_for_the_checked_address(site: Server) -> None:
    asked: list[str] = []

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            head = b""
            while b"\r\n\r\n" not in head:
                head += accepted.recv(4096)
            asked.append(head.split(b"\r\n")[0].decode())
            accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head:
                head += accepted.recv(4096)
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        chosen = policy(site, proxy=f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert get(site, "/x", chosen).text == "hi"
        thread.join()
    assert asked == [f"CONNECT 127.0.0.1:{site.server_port} HTTP/1.1"]


def test_https_checks_the_certificate_against_the_name(site: Server, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=site.test"
    try:
        subprocess.run(
            [
                *command.split(),
                "-addext",
                "subjectAltName=DNS:site.test",
                "-keyout",
                key,
                "-out",
                certificate,
            ],
            check=True,
            capture_output=True,
            timeout=20,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl to make a certificate")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    site.socket = served.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    table = {"site.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    trusting = policy(site, table, tls=lambda: ssl.create_default_context(cafile=str(certificate)))
    base = f"https://site.test:{site.server_port}"
    assert fetch(f"{base}/plain?x", ToolContext(), trusting).text == "x"
    with pytest.raises(ToolError, match=r"certificate of other\.test"):
        fetch(base.replace("site.test", "other.test"), ToolContext(), trusting)
    with pytest.raises(ToolError, match=r"certificate of site\.test"):
        fetch(base, ToolContext(), policy(site, table))
    with pytest.raises(ToolError, match="from https to http"):
        fetch(f"{base}/redirect?http://site.test/", ToolContext(), trusting)


def test_the_tool_pages_long_texts(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "Policy", lambda proxy: policy(site))
    monkeypatch.setattr(http_module, "MAX_TEXT_CHARACTERS", 4)
    assert http_get(url(site, "/plain?abcdefg"), call=ToolContext()) == "abcd\n[3 more characters: start=4]"
    assert http_get(url(site, "/plain?abcdefg"), 4, call=ToolContext()) == "efg"
    moved = http_get(url(site, "/redirect?/plain?ab"), call=ToolContext())
    assert moved == f"[{url(site, '/plain?ab')}]\nab"
    assert http_get.spec.permission == "ask"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<title>T</title><body>a <b>b</b>\n c<br>d</body>", "T\na b c\nd"),
        ("<script>if (a < b) x('<p>')</script>after", "after"),
        ("<STYLE>p {}</STYLE >after<script/>b", "after\nb".replace("\n", "")),
        ("<ul><li>one<li>two</ul>end", "- one\n- two\nend"),
        ("<h2>A</h2>b", "## A\nb"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "1 | 2"),
        ("1 < 2 &lt;b&gt; &nbsp; x", "1 < 2 <b> x"),
        ("a<!-- <p>no</p> -->b<!-- open", "ab"),
        ("<!DOCTYPE html><?xml?>a</b >", "a"),
        ("a<b", "a"),
        ("", ""),
    ],
)
def test_html(page: str, text: str) -> None:
    assert html_to_text(page) == text


@pytest.mark.parametrize(
    "piece",
    ["<", "<a ", "<!--", "</", "<script>", "<p>", "&#", "<![CDATA[", "<a\n", "< ", "<script></script "],
)
def test_html_takes_linear_time(piece: str) -> None:
    started = time.monotonic()
    html_to_text(piece * (200_000 // len(piece)))
    assert time.monotonic() - started < 1.5
