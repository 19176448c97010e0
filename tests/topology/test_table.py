"""Check that the topology table is complete and closed, and that no row says "all"."""

import inspect
import itertools
import pathlib

import pytest
from popkernel.kernel.runtime.actor import Actor as Shell
from popkernel.kernel.sandbox import names
from popkernel.proto import messages, topology, topology_rendering
from popkernel.proto.codec import Codec
from popkernel.proto.messages import CARRIES
from popkernel.proto.schema import fields_of
from popkernel.proto.topology import ACTORS, EDGES, actor, edge, kind_of
from popkernel.proto.trace.redaction import SECRET, shown

from tests.topology.rows import CASES, IDS, largest, smallest, values

ROWS = {row.name for row in ACTORS}
CLASSES = [
    c
    for _, c in inspect.getmembers(messages, inspect.isclass)
    if c.__module__ == messages.__name__ and issubclass(c, tuple)
]


def test_the_diagram_in_the_documents_is_made_from_the_table():
    text = (pathlib.Path(__file__).parents[2] / "docs/architecture.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{topology_rendering.as_mermaid()}```\n" in text


def test_every_end_of_an_edge_has_a_row():
    # "tap" is an end of a channel that the kernel keeps itself: no process
    assert {e.source for e in EDGES} | {e.target for e in EDGES} - {"tap"} == ROWS


def test_every_message_is_on_an_edge_and_every_edge_has_messages():
    assert {m for e in EDGES for m in e.messages} == set(CLASSES)
    assert all(e.messages and len(set(e.messages)) == len(e.messages) for e in EDGES)
    assert len({(e.source, e.target) for e in EDGES}) == len(EDGES)


def test_no_row_says_all():
    for row in ACTORS:
        assert not {"all", "any", "*"} & {*row.promises.split(), row.runs_as, *(u.what for u in row.unveiled)}
        assert row.why
        assert all(
            u.why and set(u.permissions) <= set("rwxc") and u.what not in ("/", "") for u in row.unveiled
        )
        assert names.split(row.promises)
        assert len(set(row.promises.split())) == len(row.promises.split())
    assert all(set(e.messages) < set(CLASSES) for e in EDGES)


def test_the_kernel_is_at_one_end_of_every_way_to_another_and_users_actors_never_meet():
    for e in EDGES:
        # an auth hands over to the next; nothing else speaks to its like
        assert e.source != e.target or e.source == "auth"
        assert "maildir.{user}" not in (e.source, e.target) or {e.source, e.target} & {
            "kernel",
            "listener",
            "mda",
            "tap",
        }
    for one in ROWS - {"init", "kernel"}:
        assert (one, "kernel") in {(e.source, e.target) for e in EDGES}


def test_only_auth_may_grant_and_only_the_kernel_may_give_channels():
    for name, sender in (
        ("LoginGranted", {"auth"}),
        ("LoginRequest", {"listener"}),
        ("SessionClosed", {"maildir.{user}"}),
        ("ActorSpawn", {"kernel"}),
        ("SessionOpen", {"kernel"}),
    ):
        assert {e.source for e in EDGES for c in e.messages if c.__name__ == name} == sender
    for e, message in CASES:
        if CARRIES.get(message) or "fresh" in message._fields:
            assert e.source == "kernel" or message.__name__ in (
                "SessionParked",
                "SessionMoved",
                "ReloadInputs",
                "SyslogChannel",
            )


def test_no_edge_carries_passwords_and_hashes():
    for e, message in CASES:
        secret = [name for name, field in fields_of(message).items() if field.secret]
        login = (e.source, e.target, message.__name__) == ("listener", "auth", "LoginRequest")
        # digests, with the key they were made with, and whose they are: no password and no hash
        handed_over = (e.source, e.target) == ("auth", "auth") and message is not messages.LoginMemoryEnd
        assert bool(secret) == (login or handed_over)
        assert {f"{message.__name__}.{name}" for name in secret} <= set(e.secrets)


@pytest.mark.parametrize(("edge_", "message"), CASES, ids=IDS)
def test_secrets_are_redacted(edge_, message):
    fields, _ = shown(message(*values(message)), payload=True)
    for name, field in fields_of(message).items():
        assert (fields[name] == SECRET) == field.secret


def test_a_secret_that_the_row_does_not_name_makes_no_codec(monkeypatch):
    rows = tuple(e._replace(secrets=()) for e in EDGES)
    monkeypatch.setattr(topology, "EDGES", rows)
    with pytest.raises(TypeError, match="secret fields"):
        Codec("listener", "auth")
    rows = tuple(e._replace(secrets=("LoginRefused.text",)) for e in EDGES)
    monkeypatch.setattr(topology, "EDGES", rows)
    with pytest.raises(TypeError, match="secret fields"):
        Codec("auth", "listener")


@pytest.mark.parametrize("pair", list(itertools.product(sorted(ROWS), repeat=2)), ids="-".join)
def test_a_pair_that_is_not_in_the_table_has_no_codec(pair):
    if pair in {(e.source, e.target) for e in EDGES}:
        assert edge(*pair).source == pair[0]
        return
    with pytest.raises(KeyError):
        edge(*pair)
    with pytest.raises(KeyError):
        Codec(*pair)


@pytest.mark.parametrize(("edge_", "message"), CASES, ids=IDS)
def test_the_largest_of_every_text_fits_the_edge(edge_, message):
    """Senders limit octets and lists; texts, names and numbers must always fit a frame."""
    fields = [
        (smallest if field.kind in ("bytes", "ints", "strs", "blobs") else lambda f: largest(f, 1 << 20))(
            field
        )
        for field in fields_of(message).values()
    ]
    Codec(edge_.source, edge_.target).encode(message(*fields))


def test_answers_are_on_the_way_back():
    for e in EDGES:
        names_ = {c.__name__ for c in e.messages}
        back = {c.__name__ for b in EDGES if b.target == e.source or b.source == e.target for c in b.messages}
        for asked, answers in e.answers.items():
            assert asked in names_
            assert set(answers) <= back, (e.source, e.target, asked)


def test_instances():
    assert kind_of("listener.0~3") == kind_of("listener") == "listener"
    assert kind_of("maildir.a.b~c") == "maildir.{user}"
    assert actor("auth~1").name == "auth"
    for name in ("", "mail", "root", "listeners", "all", "*"):
        with pytest.raises(KeyError):
            kind_of(name)


def test_the_digest_changes_with_any_bound(monkeypatch):
    before = topology.digest()
    monkeypatch.setattr(topology, "EDGES", (EDGES[0]._replace(octets=EDGES[0].octets + 1), *EDGES[1:]))
    assert topology.digest() != before


def test_every_message_has_a_handler_where_it_arrives():
    """A message without a handler would end an actor, and in the kernel the whole service."""
    from popkernel.actors.auth import main as auth
    from popkernel.actors.listener import gate
    from popkernel.actors.listener import main as listener
    from popkernel.actors.maildir import main as maildir
    from popkernel.kernel.init import main
    from popkernel.kernel.spawner import main as spawner
    from popkernel.kernel.supervisor import main as supervisor

    text = {
        "kernel": inspect.getsource(supervisor),
        "init": inspect.getsource(main),
        "spawner": inspect.getsource(spawner),
        "auth": inspect.getsource(auth),
        "listener": inspect.getsource(listener),
        "maildir.{user}": inspect.getsource(maildir),
        "gate": inspect.getsource(gate),
    }
    shell = inspect.getsource(Shell)
    for e, message in CASES:
        if "kernel" in (e.source, e.target) and e.target in text:
            assert f"m.{message.__name__}" in text[e.target] + (
                shell if e.target not in ("kernel", "init") else ""
            ), (e.source, e.target, message)
