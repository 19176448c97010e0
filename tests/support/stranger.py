"""Serve fixed octets on a control socket, as a program that is not popkernel."""

import contextlib
import socket
import threading


class Stranger:
    """Answer every connection with the same octets; `with` ends it.

    `then`: "close" the connection, or "wait".
    """

    def __init__(self, directory, octets, then="wait"):
        self._octets, self._then = octets, then
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(f"{directory}/control.sock")
        self._sock.listen(8)
        self._taken = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:  # shut down
                return
            with contextlib.suppress(OSError):  # a client that only checked for a listener
                sock.sendall(self._octets)
            if self._then == "close":
                sock.close()
            else:
                self._taken.append(sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in (self._sock, *self._taken):
            sock.close()
