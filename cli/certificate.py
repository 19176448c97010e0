"""What ``popkernel check`` says of certificate chains and their keys: what a listener would say, and what is worth knowing besides."""

import time
from calendar import timegm
from collections.abc import Sequence

from popkernel.actors.listener.certificates import Phrase, day, same_names
from popkernel.actors.listener.tls import examine
from popkernel.proto.certificate import Link
from popkernel.proto.tables import Finding

__all__ = ["SOON_DAYS", "check_certificate", "check_certificates"]

SOON_DAYS = 21
"""Certificates of 90 days are commonly renewed 30 days before their end; 21 says that this has not worked."""
_DAY = 86400


def check_certificate(cert_path: str, key_path: str, phrase_path: str = "", least: str = "1.3") -> tuple[list[Finding], list[Finding]]:
    """Look at one chain and its key, see check_certificates()."""
    return check_certificates([(cert_path, key_path)], phrase_path, least)


def check_certificates(
    pairs: Sequence[tuple[str, str]], phrase_path: str = "", least: str = "1.3", now: float | None = None,
) -> tuple[list[Finding], list[Finding]]:
    """Look at chains and keys: readable, well-formed, matching, in order, in time, with names, the keys kept secret.

    Args:
        pairs: PEM files of the chain, the server's own certificate first, and of the private key.
        phrase_path: file whose first line opens the keys, should they have a pass phrase; "" for none, which a start may ask for.
        least: lowest version of TLS, as the key tls_min has it.
        now: seconds since the epoch, for tests; None asks the clock.

    Returns:
        Errors and warnings. An open key keeps no start from serving, and is an error here.

    """
    phrase: Phrase = phrase_path or None
    errors: list[Finding] = []
    warnings: list[Finding] = []
    chains = []
    moment = time.time() if now is None else now
    for (cert, _), looked in zip(pairs, examine(pairs, least, phrase, moment), strict=True):
        errors += [*looked.doubts, *looked.errors]
        warnings += looked.warnings
        if looked.chain:
            warnings += _advice(looked.chain, cert, moment)
        chains.append((cert, looked.chain))
    warnings += same_names(chains)
    return list(dict.fromkeys(errors)), list(dict.fromkeys(warnings))


def _left(link: Link, now: float) -> str:
    days = int(timegm(time.strptime(link.facts.ends, "%Y%m%d%H%M%S")) - now) // _DAY
    return f"in {days} day{'s' * (days != 1)}"


def _advice(links: list[Link], path: str, now: float) -> list[Finding]:
    found = []
    limit = time.strftime("%Y%m%d%H%M%S", time.gmtime(now + SOON_DAYS * _DAY))
    today = time.strftime("%Y%m%d%H%M%S", time.gmtime(now))
    found += [
        Finding(path, link.line, f"the certificate ends on {day(link.facts.ends)}, {_left(link, now)}", "renew it, then `popkernel reload`")
        for link in links
        if today < link.facts.ends < limit
    ]
    own = links[0]
    if own.own:
        what = "the certificate is signed by itself: clients must be told to trust it"
        found.append(Finding(path, own.line, what, "get one from an authority that clients know"))
    elif len(links) == 1:
        what = "the file has no intermediate certificate: most clients cannot verify the server's own then"
        found.append(Finding(path, own.line, what, "append the chain of the authority (fullchain.pem)"))
    return found
