"""Check that everything about a configuration key is derived from its row in kernel/config/keys.py."""

import ast
import dataclasses
import os
import re
import socket
import tomllib

import pytest
from popkernel.actors.listener.session.policy import Policy as SessionPolicy
from popkernel.actors.maildir.store.policy import Policy as MailPolicy
from popkernel.cli.common.server_flags import config_from
from popkernel.cli.registry import build_parser
from popkernel.kernel.config import keys as config_keys
from popkernel.kernel.config import loading as config_loading
from popkernel.kernel.config.addresses import Address
from popkernel.kernel.config.keys import Config, actor_settings, flag_of, flagged_keys, key_of, keys
from popkernel.kernel.config.loading import ConfigError, load
from popkernel.kernel.decisions.leases import Settings
from popkernel.kernel.init.inputs import _merged, watched_files
from popkernel.kernel.init.singleton_settings import SingletonSettings
from popkernel.proto import messages as m
from popkernel.proto.topology import actor as row_of

from tests.support import key_documents

NAMES = [key.name for key in keys()]
CODE = {  # where an actor's settings are used, besides kernel/runtime, which all actors share
    "auth": ["actors/auth"],
    "listener": ["actors/listener"],
    "gate": ["actors/listener"],
    "maildir": ["actors/maildir"],
    "mda": ["actors/mda"],
    "spawner": ["kernel/spawner"],
}
FACTS = {"roots", "mail", "shown", "public_fd", "version", "serial"}  # settings that belong to no key
BASE = Config(
    auth_table="/a", user_table="/u", cert="/c", key="/k", hostname="h", run_dir="/r",
    oauth_issuer="https://i", oauth_audience="p", oauth_jwks="/j",
)  # fmt: skip


def other(key, config=BASE):
    """Return a value that differs from the configured one."""
    value, kind = getattr(config, key.name), key.metadata["kind"]
    if kind == "int":
        return value * 2 if value and value * 2 <= key.metadata["high"] else value // 2 if value else 1
    if kind == "choice":
        return next(choice for choice in key.metadata["choices"] if choice != value)
    others = {
        "bool": not value,
        "addresses": (Address("127.0.0.1", 9),),
        "certs": (("/x", "/y"),),
        "quota": "5S",
        "quotas": ("alice=5S",),
        "users": ("5:5",),
        "networks": ("192.0.2.0/24",),
        "domains": ("example.org",),
        "separators": "-",
    }
    return others[kind] if kind in others else f"{value}x"


def with_other(key):
    return dataclasses.replace(BASE, **{key.name: other(key)})


class Bound:
    """Stand for a listening socket."""

    def __init__(self, at, family=socket.AF_INET):
        self.at, self.family = at, family

    def fileno(self):
        return str(self.at)


class Listens:
    def __init__(self, config):
        self.tls, self.plain = [Bound(a) for a in config.listen], [Bound(a) for a in config.listen_starttls]
        self.lmtp = [Bound("lmtp.sock", socket.AF_UNIX)] * config.lmtp + [
            Bound(a) for a in config.lmtp_listen
        ]


def settings(config):
    """Return what init tells each actor; a maildir actor gets its settings from the spawner."""
    telling = SingletonSettings(Listens(config), "1.0", list(config.mta_users), None)
    said = {
        name: telling.of(config, m.SingletonStart(name, name, []))[0]
        for name in ("auth", "listener", "gate", "mda", "spawner")
    }
    return said | {"maildir": said["spawner"].pop("mail")}


def nodes(*folders):
    """Return all syntax nodes of these folders."""
    for folder in folders:
        for place, _, files in os.walk(os.path.join(key_documents.ROOT, folder)):
            for name in files:
                if name.endswith(".py"):
                    with open(os.path.join(place, name), "rb") as file:
                        yield from ast.walk(ast.parse(file.read()))


def words(*folders):
    """Return every name and every string in the code."""
    fields = ("id", "attr", "value")
    return {
        getattr(node, field)
        for node in nodes(*folders)
        for field in fields
        if isinstance(getattr(node, field, None), str)
    }


@pytest.fixture(scope="module")
def start_help():
    commands = next(action.choices for action in build_parser()._actions if action.choices)
    return " ".join(commands["start"].format_help().split())


@pytest.mark.parametrize("name", NAMES)
def test_each_key_is_in_the_help(name, start_help):
    rules = key_of(name).metadata
    rest = (
        start_help.partition("keys of the TOML file")[2]
        .partition(f" {name} {rules['doc']} (")[2]
        .partition(")")[0]
    )
    assert rest.startswith(("default ", "no default"))
    if rules["kind"] == "int":
        assert rest == f"default {key_of(name).default}, {rules['low']} to {rules['high']}"
    assert all(f'"{choice}"' in rest for choice in rules["choices"])


def test_the_sample_configuration_is_made_from_the_keys():
    text = key_documents.read(key_documents.SAMPLE)
    assert key_documents.sample(text) == text, "run python -m tests.support.key_documents"
    assert list(tomllib.loads(re.sub(r"(?m)^#(?=\w+ = )", "", text))) == NAMES
    for key in keys():
        assert f"\n# {key_documents.sentence(key)}" in text or key.name in key_documents.OWN_WORDS, key.name


def test_the_manual_is_made_from_the_keys():
    text = key_documents.read(key_documents.MANUAL)
    assert key_documents.manual(text) == text, "run python -m tests.support.key_documents"
    entries = key_documents.entries(text)
    assert list(entries) == NAMES
    for key in keys():
        if key.name not in key_documents.OWN_WORDS:
            assert entries[key.name].startswith(key_documents.sentence(key)[:-1]), key.name
            assert key_documents.default(key) in entries[key.name]


@pytest.mark.parametrize("name", NAMES)
def test_a_reload_applies_it_or_names_it_as_waiting(name):
    key, changed = key_of(name), with_other(key_of(name))
    new, waiting = _merged(BASE, changed)
    assert (new, waiting) == ((changed, []) if key.metadata["reload"] else (BASE, [name]))


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_actors_of_its_row_get_it(name):
    before, after = settings(BASE), settings(with_other(key_of(name)))
    changed = {
        (actor, setting)
        for actor, said in after.items()
        for setting, value in said.items()
        if before[actor][setting] != value
    }
    rows = {(row.actor, row.name or name) for row in key_of(name).metadata["actors"]}
    # each gate or listener gets its share of max_sessions
    by_others = {(actor, "max_sessions") for actor in ("listener", "gate")} if name == "listeners" else set()
    assert changed - {("mda", "public_fd")} == rows | by_others


def test_no_actor_gets_other_settings():
    for actor, said in settings(BASE).items():
        rows = {
            row.name or key.name for key in keys() for row in key.metadata["actors"] if row.actor == actor
        }
        assert rows <= said.keys() <= rows | FACTS
        assert set(said["shown"]) == {
            row.name or key.name
            for key in keys()
            for row in key.metadata["actors"]
            if row.actor == actor and row.recorded
        }
        assert row_of(actor)


@pytest.mark.parametrize("actor", CODE)
def test_an_actor_uses_all_its_settings(actor):
    used = words(*CODE[actor], "kernel/runtime")
    assert (
        not {row.name or key.name for key in keys() for row in key.metadata["actors"] if row.actor == actor}
        - used
    )


@pytest.mark.parametrize("folder", sorted({folder for folders in CODE.values() for folder in folders}))
def test_an_actor_reads_only_its_settings(folder):
    """Checks `config["name"]` anywhere in an actor's code."""
    # set by the process that forks it
    own = {"maildir": {"maildir", "die_with_parent"}, "listener": {"served", "die_with_parent"}}
    known = set()
    for actor, folders in CODE.items():
        known |= settings(BASE)[actor].keys() | own.get(actor, set()) if folder in folders else set()
    known |= {"mail"} if folder == "kernel/spawner" else set()
    read = {
        node.slice.value for node in nodes(folder)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).split(".")[-1] == "config"
        and isinstance(node.slice, ast.Constant)
    }  # fmt: skip
    assert read and read <= known


def test_keys_of_no_actor_are_used_elsewhere():
    used = words("kernel/init", "kernel/resources", "kernel/supervisor", "cli")
    assert not {key.name for key in keys() if not key.metadata["actors"]} - used


def test_the_files_that_a_reload_reads():
    config = dataclasses.replace(BASE, certs=(("/x", "/y"),), block_list="/b", key_passphrase_file="/p")
    assert sorted(watched_files(config)) == ["/a", "/b", "/c", "/j", "/k", "/p", "/u", "/x", "/y"]


@pytest.mark.parametrize("core", [Settings, MailPolicy, SessionPolicy])
def test_defaults_of_pure_code_are_those_of_the_keys(core):
    same = {name: value for name, value in core._field_defaults.items() if name in NAMES}
    assert same and same == {name: key_of(name).default for name in same}


def test_each_flag_s_key_is_read_from_it():
    flags = {"file": "/x", "directory": "/x", "subdir": "x", "int": "7"}
    arguments = ["start"]
    for number, key in enumerate(flagged_keys(), 1):
        flags["addresses"] = f"127.0.0.1:{number}"
        rules = key.metadata
        valued = not (rules["flag"].counted or rules["kind"] == "bool")
        arguments += [
            flag_of(key),
            *([rules["choices"][-1] if rules["choices"] else flags[rules["kind"]]] if valued else []),
        ]
    config = config_from(build_parser().parse_args(arguments))
    assert [key.name for key in flagged_keys() if getattr(config, key.name) == key.default] == []


def test_a_key_is_added_by_one_field(monkeypatch, tmp_path):
    """A new field appears in all the places tested above."""
    row = config_keys._key(
        "int", 5, "a key of this test", low=1, high=9, reload=True, actors=config_keys._LISTENER_AND_GATE,
        flag=config_keys.Flag(help=(
            "{doc} (default {default})"
        )),
    )  # fmt: skip
    added = dataclasses.make_dataclass("Config", [("added_key", int, row)], bases=(Config,), frozen=True)
    monkeypatch.setattr(config_keys, "Config", added)
    monkeypatch.setattr(config_loading, "Config", added)
    path = tmp_path / "c.toml"
    path.write_text("added_key = 7\n")
    flags = {
        "auth_table": "/a",
        "user_table": "/u",
        "listen": ["127.0.0.1"],
        "cert": "/c",
        "key": "/k",
        "run_dir": "/r",
    }
    from_file = load(flags, str(path))
    assert from_file.added_key == 7 and load(flags).added_key == 5
    with pytest.raises(
        ConfigError,
        match="command line: --added-key: added_key: 10 is no whole number from 1 to 9; write one",
    ):
        load({**flags, "added_key": 10})
    parser = next(action.choices for action in build_parser()._actions if action.choices)["start"]
    assert "--added-key N         a key of this test (default 5)" in parser.format_help()
    assert "added_key            a key of this test (default 5, 1 to 9)" in parser.format_help()
    assert parser.parse_args(["--added-key", "3"]).added_key == 3
    assert [actor for actor in settings(from_file) if settings(from_file)[actor].get("added_key") == 7] == [
        "listener",
        "gate",
    ]
    assert _merged(load(flags), from_file) == (from_file, [])
    assert "\n\n# A key of this test (1 to 9).\n#added_key = 5\n" in key_documents.sample(
        key_documents.read(key_documents.SAMPLE)
    )
    manual = key_documents.manual(key_documents.read(key_documents.MANUAL))
    assert ".It Cm added_key\nA key of this test.\nDefault 5, 1 to 9.\n.El\n" in manual
    assert "and\n.Cm added_key\nin force" in manual


def test_a_maildir_actor_s_settings_are_no_secret():
    assert set(actor_settings(BASE, "maildir")) - set(actor_settings(BASE, "maildir")["shown"]) == {
        "log_level",
        "shown",
    }
