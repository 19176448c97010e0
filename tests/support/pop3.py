"""Provide POP3 clients: one that shows raw octets, and one based on poplib."""

import poplib
import socket
import ssl

from popkernel.actors.listener.tls import forget_errors


def connect(address, *, source="", timeout=20, buffer=0):
    """Connect a socket to an address of the configuration.

    `buffer`: size of the receive buffer, in octets.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        sock.settimeout(timeout)
        if source:
            sock.bind((source, 0))
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.connect((address.host, address.port))
    except BaseException:
        sock.close()
        raise
    return sock


class RawPop3:
    """Hold one connection on which the test sends and receives every octet.

    `tls`: "tls" at once, "stls" by STLS, "" for none. `user`: log in at once. `before`: octets to send first,
    before TLS. `verify`: False if the server's certificate is not the site's. `address`: where to connect; by
    default the first address for `tls`. The other arguments are those of connect().
    """

    def __init__(
        self,
        service,
        tls="tls",
        *,
        user="",
        password="secret",
        timeout=20,
        buffer=0,
        source="",
        before=b"",
        verify=True,
        address=None,
    ):
        address = address or (service.tls if tls == "tls" else service.plain)
        self.sock = connect(address, source=source, timeout=timeout, buffer=buffer)
        self.data = bytearray()  # received, not yet consumed
        self.cafile = service.site.cert if verify else None
        try:
            # in one segment with the ClientHello
            self.sock.send(before, getattr(socket, "MSG_MORE", 0) if tls == "tls" else 0)
            self._begin(tls, user, password)
        except BaseException:
            self.close()
            raise

    def _begin(self, tls, user, password):
        if tls == "tls":
            self.secure()
        self.greeting = self.line()
        if tls == "stls":
            assert self.ask(b"STLS").startswith(b"+OK")
            self.secure()
        if user:
            assert self.ask(b"USER " + user.encode()) == b"+OK\r\n"
            answer = self.ask(b"PASS " + password.encode())
            assert answer.startswith(b"+OK"), answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def secure(self):
        """Start TLS."""
        context = ssl.create_default_context(cafile=self.cafile)
        context.check_hostname = False
        if self.cafile is None:
            context.verify_mode = ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock)

    def certificate(self) -> bytes:
        return self.sock.getpeercert(binary_form=True)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self, octets: int = 1 << 18) -> bool:
        """Receive the next octets; False at the end of the connection."""
        try:
            data = self.sock.recv(octets)
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        self.data += data
        return bool(data)

    def some(self, octets: int) -> None:
        """Receive until at least `octets` are in `data`, and leave them there."""
        while len(self.data) < octets:
            if not self.more(1 << 14):
                raise EOFError(bytes(self.data[-200:]))

    def take(self, octets: int) -> bytes:
        """Return exactly `octets` octets."""
        while len(self.data) < octets:
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))
        data = bytes(self.data[:octets])
        del self.data[:octets]
        return data

    def line(self) -> bytes:
        """Return a line with its CR LF."""
        start = 0
        while (at := self.data.find(b"\n", start)) < 0:
            start = len(self.data)
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))
        return self.take(at + 1)

    def ask(self, command: bytes) -> bytes:
        """Send a line; return the first line of the reply."""
        self.send(command + b"\r\n")
        return self.line()

    def login(self, user="alice", password="secret") -> bytes:
        """Send USER and PASS; return the reply to PASS."""
        self.ask(b"USER " + user.encode())
        return self.ask(b"PASS " + password.encode())

    def rest(self) -> bytes:
        """Return the lines after the first of a multi-line reply, as received, with the closing dot."""
        start = 0
        while True:
            if self.data.startswith(b".\r\n"):
                return self.take(3)
            at = self.data.find(b"\r\n.\r\n", max(0, start - 4))
            if at >= 0:
                return self.take(at + 5)
            start = len(self.data)
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))

    def message(self) -> bytes:
        """Return the rest of a multi-line reply without the closing dot and with dots unstuffed."""
        wire = self.rest()[:-3]
        return (wire[1:] if wire.startswith(b".") else wire).replace(b"\r\n..", b"\r\n.")

    def many(self, command: bytes) -> bytes:
        """Send a command with a multi-line reply; return the lines after +OK."""
        answer = self.ask(command)
        assert answer.startswith(b"+OK"), answer
        return self.rest()

    def end(self) -> bytes:
        """Return everything until the server closes."""
        while self.more():
            continue
        data, self.data = bytes(self.data), bytearray()
        return data


def login_answer(service, user="alice"):
    """Log in, and out again if that was answered by +OK. Return the answer to PASS."""
    with RawPop3(service) as client:
        answer = client.login(user)
        if answer.startswith(b"+OK"):
            assert client.ask(b"QUIT").startswith(b"+OK")
        return answer


class Pop3(poplib.POP3_SSL):
    """Behave as poplib, but close the socket if no greeting comes."""

    sock = file = None

    def __init__(self, *arguments, **options):
        try:
            super().__init__(*arguments, **options)
        except BaseException:
            self.close()
            raise

    def close(self):
        super().close()
        # Else a broken pipe of this client may be taken for the next one's:
        # tests/e2e/protocol/test_clients_gone_mid_answer.py
        forget_errors()
