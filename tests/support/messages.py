"""Make messages whose other fields do not matter to a test."""

from popkernel.proto import messages as m


def login_started(session):
    return m.LoginStarted(session, "alice", "192.0.2.1:4711", 13, "PASS")
