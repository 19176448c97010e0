"""Check certificate chains and keys as a listener does, with further warnings."""

from collections.abc import Sequence

from popkernel.actors.listener.certificates import Phrase, same_names
from popkernel.actors.listener.tls import examine
from popkernel.proto.files.tables import Finding

__all__ = ["check_certificate", "check_certificates"]


def check_certificate(
    cert_path: str, key_path: str, phrase_path: str = "", least: str = "1.3"
) -> tuple[list[Finding], list[Finding]]:
    """Check one chain and its key, see check_certificates()."""
    return check_certificates([(cert_path, key_path)], phrase_path, least)


def check_certificates(
    pairs: Sequence[tuple[str, str]],
    phrase_path: str = "",
    least: str = "1.3",
    now: float | None = None,
    notes: list[str] | None = None,
) -> tuple[list[Finding], list[Finding]]:
    """Check chains and keys: readable, well-formed, matching, in order, valid, with names, keys kept secret.

    Args:
        pairs: PEM files of the chain, the server's own certificate first, and of the private key.
        phrase_path: file whose first line is the keys' pass phrase; "" for none: a start asks for it.
        least: lowest version of TLS, as in the key tls_min.
        now: seconds since the epoch, for tests; None for the clock's.
        notes: receives remarks about things that may be intended.

    Returns:
        Errors and warnings. A key that others may read does not keep `start` from serving, but is an error
        here.

    """
    phrase: Phrase = phrase_path or None
    errors: list[Finding] = []
    warnings: list[Finding] = []
    chains = []
    for (cert, _), looked in zip(pairs, examine(pairs, least, phrase, now), strict=True):
        errors += [*looked.doubts, *looked.errors]
        warnings += looked.warnings
        if looked.chain and looked.chain[0].self_issued and notes is not None:
            line = looked.chain[0].line
            notes.append(f"{cert}:{line}: the certificate is self-signed: clients must be told to trust it")
        chains.append((cert, looked.chain))
    warnings += same_names(chains)
    return list(dict.fromkeys(errors)), list(dict.fromkeys(warnings))
