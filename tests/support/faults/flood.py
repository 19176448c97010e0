"""Flood a server with many clients from one process: `python flood.py KIND COUNT ADDRESSES PORT`.

KIND is silent (connects and sends nothing), drip (an octet a second) or guess (one wrong password after
another). The clients use ADDRESSES addresses of 127/8, reconnect ten seconds after they were closed, and all
disconnect when standard input ends. `up N` is printed once all N have been connected or refused, and `made N
answered N` at the end.
"""

import contextlib
import heapq
import os
import selectors
import socket
import sys
import time

COMMAND = [sys.executable, os.path.abspath(__file__)]
_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT, ip(7): choose the port when the peer's address is known
_AT_ONCE = 200  # connections opened between two polls
_RETRY = 10.0  # seconds until a closed client reconnects


class Flood:
    def __init__(self, kind, count, addresses, port):
        self.kind, self.count, self.addresses, self.port = kind, count, addresses, port
        self.selector = selectors.DefaultSelector()
        self.due = [(0.0, n) for n in range(count)]  # when each client connects (again)
        self.open = {}
        self.tried = set()
        self.made = self.answered = 0
        self.next_drip = 0.0
        self.position = 0

    def connect(self, n):
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _NO_PORT, 1)
        which = n % self.addresses
        sock.bind((f"127.1.{which // 250}.{which % 250 + 1}", 0))
        sock.connect_ex(("127.0.0.1", self.port))
        self.open[n] = sock
        self.made += 1
        self.tried.add(n)
        self.selector.register(sock, selectors.EVENT_READ, n)

    def lost(self, n):
        sock = self.open.pop(n)
        self.selector.unregister(sock)
        sock.close()
        heapq.heappush(self.due, (time.monotonic() + _RETRY, n))

    def read(self, n):
        sock = self.open[n]
        try:
            data = sock.recv(4096)
            if data and self.kind == "guess":
                lines = data.count(b"\n")
                self.answered += data.count(b"-ERR [AUTH]")
                if lines and (data.startswith(b"+OK POP3") or b"-ERR" in data):
                    sock.send(b"USER user%d\r\nPASS guess%d\r\n" % (n % 20, self.answered))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lost(n)

    def drip(self):
        self.next_drip = time.monotonic() + 1.0
        octet = b"NOOP NOOP\r\n"[self.position % 11 :][:1]
        self.position += 1
        for n, sock in list(self.open.items()):
            try:
                sock.send(octet)
            except BlockingIOError:
                continue
            except OSError:
                self.lost(n)

    def run(self):
        said = False
        self.selector.register(0, selectors.EVENT_READ, -1)
        while True:
            now = time.monotonic()
            for _ in range(_AT_ONCE):
                if not self.due or self.due[0][0] > now:
                    break
                self.connect(heapq.heappop(self.due)[1])
            if len(self.tried) == self.count and not said:
                said = True
                print("up", self.count, flush=True)
            if self.kind == "drip" and now >= self.next_drip:
                self.drip()
            for key, _ in self.selector.select(0.02):
                if key.data < 0:
                    print("made", self.made, "answered", self.answered, "open", len(self.open), flush=True)
                    return
                if key.data in self.open:
                    self.read(key.data)


if __name__ == "__main__":
    Flood(sys.argv[1], *map(int, sys.argv[2:])).run()
