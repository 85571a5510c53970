"""A page from the public web as text; asked for each time, unless the user allows more.

A name is resolved once, each address is checked, and the connection goes to the very address that was checked,
so that a second answer of the name server cannot lead into the user's own network. Each redirect starts anew.
Environment proxies are ignored; `http_get.proxy` or EDGELLM_HTTP_PROXY ("http://host:port") sets one, which is
asked to CONNECT to the checked address.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import edgellm
from edgellm_tools.addresses import Address, is_neighbour, is_public
from edgellm_tools.plain_text import html_to_text

MAX_URL_CHARACTERS = 2_000
MAX_BODY_BYTES = 1024 * 1024
MAX_TEXT_CHARACTERS = 6_000
MAX_REDIRECTS = 5
MAX_FETCH_S = 20.0
MAX_CONNECT_S = 8.0
# Web ports only: a request can be made to look like other protocols' commands.
PORTS = frozenset({80, 443, 8080, 8443})
_REDIRECTS = {301, 302, 303, 307, 308}
_TEXT_TYPES = {"application/json", "application/xml", "application/javascript", "application/rss+xml"}


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be fetched. Tests put in another check; nothing else does."""

    is_allowed: Callable[[Address], bool] = is_public
    is_neighbour: Callable[[Address, Address], bool] = is_neighbour
    ports: frozenset[int] = PORTS
    proxy: str = ""
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    resolve: Callable[[str, int], list[str]] = _resolve


@dataclass(frozen=True, slots=True)
class Page:
    """What came back: `url` after redirects, `content_type` without its parameters."""

    url: str
    content_type: str
    text: str
    is_cut: bool


def fetch(url: str, call: edgellm.ToolContext, policy: Policy | None = None) -> Page:
    """The page behind a URL. Raises ToolError: refused, not reachable, too late, not text, an HTTP error."""
    policy = policy or Policy()
    until = time.monotonic() + min(MAX_FETCH_S, max(0.5, call.remaining_s() - 1))
    for _ in range(MAX_REDIRECTS + 1):
        parts = check_url(url, policy.ports)
        with _request(parts, call, policy, until) as response:
            location = response.getheader("Location")
            if response.status in _REDIRECTS and location:
                target = urljoin(url, location)
                if parts.scheme == "https" and urlsplit(target).scheme == "http":
                    raise edgellm.ToolError("The page redirects from https to http: not followed.")
                url = target
                continue
            if response.status != 200:
                raise edgellm.ToolError(
                    f"{parts.hostname} answered {response.status} {response.reason[:80]}."
                )
            page = _page(url, response)
            # A connection shut down at the deadline looks like the end of the page.
            call.check()
            if time.monotonic() >= until:
                raise edgellm.ToolError(f"{parts.hostname} took too long.")
            return page
    raise edgellm.ToolError(f"More than {MAX_REDIRECTS} redirects.")


def check_url(url: str, ports: frozenset[int] = PORTS) -> SplitResult:
    """The parts of a URL that may be asked for. Raises ToolError."""
    url = url.strip()
    if len(url) > MAX_URL_CHARACTERS:
        raise edgellm.ToolError(f"The URL has {len(url)} characters; at most {MAX_URL_CHARACTERS}.")
    if any(character.isspace() or not character.isprintable() or character == "\\" for character in url):
        raise edgellm.ToolError("The URL holds spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname
    except ValueError as error:
        raise edgellm.ToolError(f"The URL is not valid: {error}.") from error
    if parts.scheme not in {"http", "https"}:
        raise edgellm.ToolError("Only http and https are fetched.", hint='Write "https://...".')
    if "@" in parts.netloc:
        raise edgellm.ToolError("A URL with a user name or password is not fetched.")
    if not host:
        raise edgellm.ToolError("The URL names no host.", hint='Write "https://host/path".')
    if port not in ports:
        raise edgellm.ToolError(f"Port {port} is not fetched, only {', '.join(map(str, sorted(ports)))}.")
    return parts


def _host_and_port(parts: SplitResult) -> tuple[str, int]:
    host = (parts.hostname or "").rstrip(".")
    try:
        # An IPv6 literal has no IDNA form.
        ascii_host = host if ":" in host else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise edgellm.ToolError(f"{host[:80]!r} is not a host name.") from error
    return ascii_host, parts.port or (443 if parts.scheme == "https" else 80)


def _addresses(host: str, port: int, policy: Policy, until: float) -> list[Address]:
    """The allowed ones. Raises ToolError where there is none."""
    answer: list[str] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            answer.extend(policy.resolve(host, port))
        except (OSError, UnicodeError) as error:
            failure.append(error)

    # The system's resolver knows no deadline.
    asking = threading.Thread(target=ask, name="edgellm-resolve", daemon=True)
    asking.start()
    asking.join(max(0.0, until - time.monotonic()))
    if failure or asking.is_alive() or not answer:
        raise edgellm.ToolError(f"The name {host[:80]!r} could not be resolved.", hint="Check the spelling.")
    found = [ipaddress.ip_address(text) for text in answer]
    allowed = [address for address in found if policy.is_allowed(address)]
    if not allowed:
        raise edgellm.ToolError(
            f"{host[:80]} is an address of a private or special network: not fetched.",
            hint="Only the public internet can be reached.",
        )
    return allowed


@contextlib.contextmanager
def _request(
    parts: SplitResult, call: edgellm.ToolContext, policy: Policy, until: float
) -> Generator[http.client.HTTPResponse]:
    host, port = _host_and_port(parts)
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(_Watch(call, until))
        try:
            connected = _connect(_addresses(host, port, policy, until), port, policy, watch, until)
            if parts.scheme == "https":
                wrapped = policy.tls().wrap_socket(
                    connected, server_hostname=host, do_handshake_on_connect=False
                )
                watch.hold(wrapped)
                wrapped.do_handshake()
                connected = wrapped
            connection = http.client.HTTPConnection(host, port)
            connection.sock = connected
            stack.callback(connection.close)
            path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}" if parts.query else ""
            connection.putrequest("GET", path + query, skip_accept_encoding=True, skip_host=True)
            shown = f"[{host}]" if ":" in host else host
            connection.putheader("Host", shown if parts.port is None else f"{shown}:{port}")
            connection.putheader("User-Agent", f"edgellm/{edgellm.__version__}")
            connection.putheader("Accept", "text/html, text/*, application/json;q=0.9, */*;q=0.1")
            connection.putheader("Accept-Encoding", "identity")
            connection.putheader("Connection", "close")
            connection.endheaders()
            response = connection.getresponse()
            stack.callback(response.close)
            yield response
        except ssl.SSLCertVerificationError as error:
            raise edgellm.ToolError(
                f"The certificate of {host} is not valid: {error.verify_message}."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            call.check()
            if time.monotonic() >= until:
                raise edgellm.ToolError(f"{host} took too long.") from error
            raise edgellm.ToolError(f"{host} could not be read: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:160]


def _connect(
    addresses: list[Address], port: int, policy: Policy, watch: _Watch, until: float
) -> socket.socket:
    failure: OSError = OSError("no address")
    for address in addresses[:4]:
        limit_s = min(MAX_CONNECT_S, until - time.monotonic())
        if limit_s <= 0:
            break
        try:
            if policy.proxy:
                return _through_proxy(policy.proxy, address, port, watch, limit_s)
            connected = socket.socket(
                socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM
            )
            watch.hold(connected)
            connected.settimeout(limit_s)
            connected.connect((str(address), port))
        except OSError as error:
            failure = error
            continue
        own = ipaddress.ip_address(str(connected.getsockname()[0]).partition("%")[0])
        if policy.is_neighbour(own, address):
            raise edgellm.ToolError("The address belongs to this machine or its own network: not fetched.")
        connected.settimeout(MAX_FETCH_S)
        return connected
    raise failure


def _through_proxy(proxy: str, address: Address, port: int, watch: _Watch, limit_s: float) -> socket.socket:
    parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    try:
        host, proxy_port = parts.hostname, parts.port or 8080
    except ValueError:
        host, proxy_port = None, 0
    if parts.scheme != "http" or not host:
        raise edgellm.ToolError(
            "The proxy setting of http_get is not valid.", hint="The user writes http://host:port."
        )
    connected = socket.create_connection((host, proxy_port), timeout=limit_s)
    watch.hold(connected)
    target = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    connected.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    answer = b""
    # A byte at a time: whatever follows the empty line is already the other side's.
    while not answer.endswith(b"\r\n\r\n"):
        byte = connected.recv(1)
        if not byte or len(answer) > 16_384:
            raise OSError("the proxy hung up")
        answer += byte
    if answer.split(b" ", 2)[1:2] != [b"200"]:
        raise OSError("the proxy refused: " + answer.split(b"\r\n", 1)[0].decode("latin-1")[:80])
    connected.settimeout(MAX_FETCH_S)
    return connected


class _Watch:
    """Shuts the socket down at the deadline or on cancellation: a server that sends a byte a second never times out."""

    def __init__(self, call: edgellm.ToolContext, until: float) -> None:
        self._call = call
        self._until = until
        self._socket: socket.socket | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="edgellm-http-watch", daemon=True)

    def hold(self, connected: socket.socket) -> None:
        """The socket of now; the one before is closed."""
        with self._lock:
            before, self._socket = self._socket, connected
        if before is not None:
            before.close()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        while not self._done.wait(0.05):
            if self._call.cancelled() or time.monotonic() > self._until:
                with self._lock, contextlib.suppress(OSError):
                    if self._socket is not None:
                        self._socket.shutdown(socket.SHUT_RDWR)


def _page(url: str, response: http.client.HTTPResponse) -> Page:
    content_type = response.headers.get_content_type()
    is_text = content_type.startswith("text/") or content_type in _TEXT_TYPES
    if not is_text and not content_type.endswith(("+json", "+xml")):
        raise edgellm.ToolError(f"The page is {content_type[:60]}, not text.")
    data, is_cut = _body(response)
    charset = response.headers.get_content_charset("utf-8")
    if "punycode" in charset:
        charset = "utf-8"  # no page's, and Python takes minutes to read a megabyte of it
    try:
        text = data.decode(charset, "replace")
    except (LookupError, ValueError):
        text = data.decode("utf-8", "replace")
    if content_type in {"text/html", "application/xhtml+xml"}:
        text = html_to_text(text)
    return Page(url, content_type, text.strip(), is_cut)


def _body(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    encoding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if encoding not in {"identity", "gzip", "x-gzip"}:
        raise edgellm.ToolError(f"The page is compressed in a way that is not read ({encoding[:20]}).")
    data = response.read(MAX_BODY_BYTES + 1)
    is_cut = len(data) > MAX_BODY_BYTES
    data = data[:MAX_BODY_BYTES]
    if encoding != "identity":
        # Some servers compress unasked. Never more than the cap comes out, whatever is in it.
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(data, MAX_BODY_BYTES)
        except zlib.error as error:
            raise edgellm.ToolError("The page's compression is broken.") from error
        is_cut = is_cut or bool(unpacker.unconsumed_tail)
    return data, is_cut


@edgellm.tool(permission="ask", timeout_s=25, max_result_tokens=2048)
def http_get(url: str, start: int = 0, *, call: edgellm.ToolContext) -> str:
    """Fetches a web page as text.

    Args:
        url: Full address.
        start: First character.
    """
    proxy = str(call.setting("http_get.proxy") or os.environ.get("EDGELLM_HTTP_PROXY") or "")
    page = fetch(url, call, Policy(proxy=proxy))
    start = max(0, start)
    text = page.text[start : start + MAX_TEXT_CHARACTERS]
    rest = len(page.text) - start - len(text)
    ending = f"\n[{rest} more characters: start={start + len(text)}]" if rest > 0 else ""
    if not ending and page.is_cut:
        ending = f"\n[the page is longer than {MAX_BODY_BYTES} bytes: cut here]"
    where = f"[{page.url}]\n" if page.url != url else ""
    return where + (text or "[no text]") + ending
