"""Bind the listening sockets once, before init enters the sandbox. Singletons inherit them."""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import Config
from popkernel.kernel.init.binding import BindError, bind
from popkernel.kernel.init.ids import mta_ids
from popkernel.kernel.init.run_directory import StartError
from popkernel.kernel.runtime.exit_codes import EXITS, WANT

__all__ = ["ListenSockets", "unix_socket"]

_BACKLOG = 4096
_HANGUP: int = getattr(select, "POLLRDHUP", 0)


class ListenSockets:
    """Keep the listening sockets for POP3 and LMTP; `control.sock` is the kernel's."""

    def __init__(self, config: Config) -> None:
        self._made: dict[socket.socket, tuple[Callable[..., socket.socket], tuple[Any, ...]]] = {}
        self.tls = [self._make(_bound, "listen", a) for a in config.listen]
        self.plain = [self._make(_bound, "listen_starttls", a) for a in config.listen_starttls]
        # everybody may connect: the mda checks the peer's uid
        self.lmtp = [self._make(unix_socket, f"{config.run_dir}/lmtp.sock", 0o666)] if config.lmtp else []
        if config.lmtp:  # for root and mta_users: sockets whose queue no other user can fill
            for gid in dict.fromkeys(gid for _, gid in mta_ids(config)) or [os.getegid()]:
                name = f"mta-{gid}.sock" if len(self.lmtp) > 1 else "mta.sock"
                self.lmtp.append(self._make(unix_socket, f"{config.run_dir}/{name}", 0o660, gid))
        self.lmtp += [self._make(_bound, "lmtp_listen", a) for a in config.lmtp_listen]

    def _make(self, make: Callable[..., socket.socket], *how: Any) -> socket.socket:
        sock = make(*how)
        self._made[sock] = make, how
        return sock

    def renew(self) -> None:
        """Make sockets anew that a process which shares them has shut down.

        Raises:
            StartError: one can't be bound now.
            OSError: the system is short of something.
        """
        for sockets in (self.tls, self.plain, self.lmtp):
            for n, sock in enumerate(sockets):
                if _is_shut_down(sock):
                    make, how = self._made[sock]
                    if sock.family != socket.AF_UNIX:  # at its present port, if the system chose one
                        how = how[0], how[1]._replace(port=sock.getsockname()[1])
                    sockets[n] = self._make(make, *how)
                    del self._made[sock]
                    sock.close()

    def addresses(self) -> list[str]:
        """Return protocol and address of each socket, as bound, for the log line at the start."""
        return [
            *(f"pop3s {_shown(s)}" for s in self.tls),
            *(f"pop3 {_shown(s)}" for s in self.plain),
            *(f"lmtp {_shown(s)}" for s in self.lmtp),
        ]


def _bound(key: str, address: Address) -> socket.socket:
    try:
        sock = bind(key, address)
        try:
            sock.listen(_BACKLOG)
        except OSError as error:  # another program listens there, and its socket lets others bind
            sock.close()
            raise BindError(key, address, error) from None
    except BindError as error:
        raise StartError(error.code, str(error)) from None
    sock.setblocking(False)
    return sock


def _is_shut_down(sock: socket.socket) -> bool:
    """Return whether shutdown(2) was called: then TCP no longer listens, and a unix socket has hung up."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return True
    poll = select.poll()
    poll.register(sock, _HANGUP)
    return any(events & (_HANGUP | select.POLLHUP) for _, events in poll.poll(0))


def _shown(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return str(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_socket(path: str, mode: int, gid: int = -1) -> socket.socket:
    """Return a listening unix socket at `path`, in the run directory. Mode and group decide who may connect.

    Raises:
        StartError: it can't be made.
    """
    sock = None
    before = os.umask(0o777 & ~mode)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of an earlier service: this one holds the lock
        sock.bind(path)
        if gid >= 0 and os.geteuid() == 0:
            os.chown(path, -1, gid)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        if error.errno in WANT:
            raise StartError(
                EXITS["tempfail"].code,
                f"{path}: {error.strerror}; see what the system is short of, and try again",
            ) from None
        mend = (
            "give root CAP_CHOWN, or leave mta_users out"
            if gid >= 0 and error.errno == errno.EPERM
            else "give another --run-dir"
        )
        raise StartError(EXITS["cantcreat"].code, f"{path}: {error.strerror}; {mend}") from None
    finally:
        os.umask(before)
    sock.setblocking(False)
    return sock
