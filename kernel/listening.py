"""The listening sockets: bound once, before anything is locked in, and handed to every process that is started to serve on them."""

import contextlib
import errno
import os
import socket

from popkernel.kernel.binding import BindError, bind
from popkernel.kernel.config import Address, Config
from popkernel.kernel.exits import EXITS, WANT
from popkernel.kernel.ids import mta_ids
from popkernel.kernel.rundir import StartError

__all__ = ["Listening", "unix_socket"]

_BACKLOG = 4096


class Listening:
    """Those of the configuration; `control.sock` is the kernel's."""

    def __init__(self, config: Config) -> None:
        self.tls = [self._bind("listen", a) for a in config.listen]
        self.plain = [self._bind("listen_starttls", a) for a in config.listen_starttls]
        self.lmtp = [unix_socket(f"{config.run_dir}/lmtp.sock", 0o666)] if config.lmtp else []  # the mda asks who is there
        if config.lmtp:  # queues that nobody else can fill, for root and mta_users
            for gid in dict.fromkeys(gid for _, gid in mta_ids(config)) or [os.getegid()]:
                name = f"mta-{gid}.sock" if len(self.lmtp) > 1 else "mta.sock"
                self.lmtp.append(unix_socket(f"{config.run_dir}/{name}", 0o660, gid))
        self.lmtp += [self._bind("lmtp_listen", a) for a in config.lmtp_listen]

    @staticmethod
    def _bind(key: str, address: Address) -> socket.socket:
        try:
            sock = bind(key, address)
            try:
                sock.listen(_BACKLOG)
            except OSError as error:  # somebody listens there whose socket lets others bind too
                raise BindError(key, address, error) from None
        except BindError as error:
            raise StartError(error.code, str(error)) from None
        sock.setblocking(False)
        return sock

    def addresses(self) -> list[str]:
        """As they are bound, for the line that says we are ready."""
        return [
            *(f"pop3s {_shown(s)}" for s in self.tls), *(f"pop3 {_shown(s)}" for s in self.plain),
            *(f"lmtp {_shown(s)}" for s in self.lmtp),
        ]


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
