"""Play the shell of a listener's session: carry out its actions and record them."""

from popkernel.actors.listener.session.actions import (
    Ask,
    Close,
    GiveCredit,
    HangUp,
    LogIn,
    Say,
    Shown,
    StartTls,
    Typed,
)


class SessionShell:
    """Run a session whose client reads everything.

    `tell("received", data)` passes an event to the session.
    """

    def __init__(self, session):
        self.session = session
        self.said = b""
        self.shown = []
        self.typed = []
        self.requests = []
        self.credit = 0
        self.login = None
        self.tls = False  # requested and not begun
        self.closed = None  # the reason, once closed
        self.do(session.begin())

    def tell(self, event, *arguments):
        self.do(getattr(self.session, event)(*arguments))

    def do(self, actions):
        while actions:
            for action in actions:
                self.act(action)
            if self.tls or self.closed is not None:
                return
            actions = self.session.sent(0)

    def act(self, action):
        match action:
            case Say():
                assert action
                self.said += b"".join(action)
            case Ask():
                assert action
                self.requests += action
            case GiveCredit(octets):
                assert octets > 0
                self.credit += octets
            case LogIn(request):
                assert self.session.state == "login"
                self.login = request
            case StartTls():
                self.tls = True
            case Close(why):
                self.closed = why
            case HangUp():
                self.closed = "hung up"
            case Typed(lines):
                self.typed.append(lines)
            case Shown(said):
                self.shown += said

    def take_said(self):
        said, self.said = self.said, b""
        return said

    def take_requests(self):
        requests, self.requests = self.requests, []
        return requests

    def take_login(self):
        login, self.login = self.login, None
        return login

    def secure(self):
        """Finish the TLS handshake if one was requested."""
        if self.tls:
            self.tls = False
            self.tell("secured")

    def serve(self, maildir):
        """Let an honest maildir actor answer all requests; return them."""
        asked = []
        while requests := self.take_requests():
            for request in requests:
                asked.append(request)
                for answer in maildir.answer(request):
                    self.tell("answered", answer)
        return asked
