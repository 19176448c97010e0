"""A POP3 client that shows the octets as they came, and one that is poplib's."""

import poplib
import socket
import ssl

from popkernel.actors.listener.tls import forget_errors


def connect(address, *, source="", timeout=20, buffer=0):
    """Connect a socket to an address of the configuration. `buffer`: octets that the system takes before they are read."""
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
    """One connection. The test sends and takes every octet.

    `tls`: "tls" at once, "stls" by STLS, "" not at all. `user`: log in at once. `before`: octets to send first of all,
    before TLS. `verify`: False where the server's certificate is not the site's. `address`: where to connect to; else the
    first address for `tls`. The others are connect()'s.
    """

    def __init__(
        self, service, tls="tls", *, user="", password="secret", timeout=20, buffer=0, source="", before=b"", verify=True,
        address=None,
    ):
        address = address or (service.tls if tls == "tls" else service.plain)
        self.sock = connect(address, source=source, timeout=timeout, buffer=buffer)
        self.data = bytearray()  # received, and not yet taken
        self.cafile = service.site.cert if verify else None
        try:
            self.sock.send(before, getattr(socket, "MSG_MORE", 0) if tls == "tls" else 0)  # in one segment with the ClientHello
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
        """TLS from here on."""
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
        """Receive what comes next; False at the end of the connection."""
        try:
            data = self.sock.recv(octets)
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        self.data += data
        return bool(data)

    def some(self, octets: int) -> None:
        """Receive until so many octets are there, and not much more; they are left in `data`."""
        while len(self.data) < octets:
            if not self.more(1 << 14):
                raise EOFError(bytes(self.data[-200:]))

    def take(self, octets: int) -> bytes:
        """Exactly so many octets."""
        while len(self.data) < octets:
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))
        data = bytes(self.data[:octets])
        del self.data[:octets]
        return data

    def line(self) -> bytes:
        """A line with its CR LF."""
        start = 0
        while (at := self.data.find(b"\n", start)) < 0:
            start = len(self.data)
            if not self.more():
                raise EOFError(bytes(self.data[-200:]))
        return self.take(at + 1)

    def ask(self, command: bytes) -> bytes:
        """Send a line; the first line of the reply."""
        self.send(command + b"\r\n")
        return self.line()

    def login(self, user="alice", password="secret") -> bytes:
        """USER and PASS; the reply to PASS."""
        self.ask(b"USER " + user.encode())
        return self.ask(b"PASS " + password.encode())

    def rest(self) -> bytes:
        """What follows the first line of a reply of many lines, as it came, the closing dot with it."""
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
        """The same as a client has it in the end: without the closing dot, dots undone."""
        wire = self.rest()[:-3]
        return (wire[1:] if wire.startswith(b".") else wire).replace(b"\r\n..", b"\r\n.")

    def many(self, command: bytes) -> bytes:
        """A command whose reply has many lines; those after the first, which must be +OK."""
        answer = self.ask(command)
        assert answer.startswith(b"+OK"), answer
        return self.rest()

    def end(self) -> bytes:
        """All that still comes until the server closes."""
        while self.more():
            continue
        data, self.data = bytes(self.data), bytearray()
        return data


class Pop3(poplib.POP3_SSL):
    """As poplib has it, but nothing is left open where no greeting comes."""

    sock = file = None

    def __init__(self, *arguments, **options):
        try:
            super().__init__(*arguments, **options)
        except BaseException:
            self.close()
            raise

    def close(self):
        super().close()
        forget_errors()  # else the broken pipe of this one may be taken for the next one's: tests/e2e/protocol/test_clients_gone_mid_answer.py
