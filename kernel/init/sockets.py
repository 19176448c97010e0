"""The listening sockets: bound once, before anything is locked in, and handed to every process that is started to serve on them."""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from popkernel.kernel.config.keys import Address, Config
from popkernel.kernel.init.binding import BindError, bind
from popkernel.kernel.init.ids import mta_ids
from popkernel.kernel.init.run_directory import StartError
from popkernel.kernel.runtime.exit_codes import EXITS, WANT

__all__ = ["Listening", "unix_socket"]

_BACKLOG = 4096
_HANGUP: int = getattr(select, "POLLRDHUP", 0)


class Listening:
    """Those of the configuration; `control.sock` is the kernel's."""

    def __init__(self, config: Config) -> None:
        self._made: dict[socket.socket, tuple[Callable[..., socket.socket], tuple[Any, ...]]] = {}
        self.tls = [self._make(_bound, "listen", a) for a in config.listen]
        self.plain = [self._make(_bound, "listen_starttls", a) for a in config.listen_starttls]
        self.lmtp = [self._make(unix_socket, f"{config.run_dir}/lmtp.sock", 0o666)] if config.lmtp else []  # the mda asks who is there
        if config.lmtp:  # queues that nobody else can fill, for root and mta_users
            for gid in dict.fromkeys(gid for _, gid in mta_ids(config)) or [os.getegid()]:
                name = f"mta-{gid}.sock" if len(self.lmtp) > 1 else "mta.sock"
                self.lmtp.append(self._make(unix_socket, f"{config.run_dir}/{name}", 0o660, gid))
        self.lmtp += [self._make(_bound, "lmtp_listen", a) for a in config.lmtp_listen]

    def _make(self, make: Callable[..., socket.socket], *how: Any) -> socket.socket:
        sock = make(*how)
        self._made[sock] = make, how
        return sock

    def renew(self) -> None:
        """Make those anew that somebody who shares them has shut down. StartError, OSError: one can't be had now."""
        for sockets in (self.tls, self.plain, self.lmtp):
            for n, sock in enumerate(sockets):
                if _is_shut_down(sock):
                    make, how = self._made[sock]
                    if sock.family != socket.AF_UNIX:  # at the port that it has, where the system chose one
                        how = how[0], how[1]._replace(port=sock.getsockname()[1])
                    sockets[n] = self._make(make, *how)
                    del self._made[sock]
                    sock.close()

    def addresses(self) -> list[str]:
        """As they are bound, for the line that says we are ready."""
        return [
            *(f"pop3s {_shown(s)}" for s in self.tls), *(f"pop3 {_shown(s)}" for s in self.plain),
            *(f"lmtp {_shown(s)}" for s in self.lmtp),
        ]


def _bound(key: str, address: Address) -> socket.socket:
    try:
        sock = bind(key, address)
        try:
            sock.listen(_BACKLOG)
        except OSError as error:  # somebody listens there whose socket lets others bind too
            sock.close()
            raise BindError(key, address, error) from None
    except BindError as error:
        raise StartError(error.code, str(error)) from None
    sock.setblocking(False)
    return sock


def _is_shut_down(sock: socket.socket) -> bool:
    """Whether shutdown(2) was called on it: TCP no longer listens then, and a unix socket is at its end for reading."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return True
    look = select.poll()
    look.register(sock, _HANGUP)
    return any(events & (_HANGUP | select.POLLHUP) for _, events in look.poll(0))


def _shown(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return str(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_socket(path: str, mode: int, gid: int = -1) -> socket.socket:
    """A listening socket in the run directory; who may connect is decided by its mode and group, and by its owner where that asks."""
    sock = None
    before = os.umask(0o777 & ~mode)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # ours: the lock is held
        sock.bind(path)
        if gid >= 0 and os.geteuid() == 0:
            os.chown(path, -1, gid)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        if error.errno in WANT:
            raise StartError(EXITS["tempfail"].code, f"{path}: {error.strerror}; see what the system is short of, and try again") from None
        mend = "give root CAP_CHOWN, or leave mta_users out" if gid >= 0 and error.errno == errno.EPERM else "give another --run-dir"
        raise StartError(EXITS["cantcreat"].code, f"{path}: {error.strerror}; {mend}") from None
    finally:
        os.umask(before)
    sock.setblocking(False)
    return sock
