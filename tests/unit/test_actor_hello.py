"""Test what an actor sends with Hello."""

import os

from popkernel.kernel.runtime.actor import Actor, Boot
from popkernel.kernel.runtime.channel import Channel, pair
from popkernel.kernel.runtime.loop import Loop
from popkernel.proto import messages as m
from popkernel.proto.log_levels import WARNING


def test_warnings_leave_with_hello(monkeypatch):
    """A reload answers its caller once all new actors have sent Hello: what came later was missing."""
    ours, theirs = pair()
    writes, taken, write = [], [], Channel._write
    monkeypatch.setattr(Channel, "_write", lambda *given: (writes.append(1), write(*given))[1])
    actor = Actor(Boot("listener.0", theirs, os.getuid(), os.getgid(), {}))
    actor.connect("certificate.doubt", ["/a: old; renew it", "/b: weak; get another"])
    kernel = Channel(
        Loop(), ours, "kernel", "listener.0", lambda _, message, fds: taken.append(message), lambda *_: None
    )
    kernel.receive()
    for channel in (actor.kernel, kernel):
        channel.close()
    assert len(writes) == 1
    assert [type(message) for message in taken] == [m.Hello, m.LogEvent, m.LogEvent]
    assert [message.fields["problem"][:2] for message in taken[1:]] == ["/a", "/b"]
    assert all(message[:2] == (WARNING, "certificate.doubt") for message in taken[1:])
