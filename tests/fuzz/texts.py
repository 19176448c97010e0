"""No argument makes LANG raise or answer with more than whole lines; no line that is translated stops being one line, UTF-8, of 512 octets at most."""

from popkernel.proto.texts import LANGUAGES, language, reply


def one(data):
    answer, tongue = language(data, "de")
    assert tongue in LANGUAGES
    assert answer.startswith((b"+OK ", b"-ERR "))
    assert answer.endswith(b"\r\n")
    assert answer.decode().count("\n") in (1, len(LANGUAGES) + 2)
    line = b"-ERR [SYS/TEMP] " + data.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
    out = reply(line, "de")
    assert out.count(b"\n") == 1
    assert len(out.decode().encode()) <= 512


SEEDS = [b"", b"de-AT", b"*", b"en", b"fr", b"message gone: x was removed by another program", b"12 messages (7 octets)"]
