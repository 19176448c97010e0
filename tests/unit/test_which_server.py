"""Test which server a command is for, if an ordinary user gives it no run directory."""

import argparse
import contextlib
import os
import socket

import pytest
from popkernel.cli.common import run_directory
from popkernel.cli.common.run_directory import delivery_run_dir_of, run_dir_of
from popkernel.kernel import client
from popkernel.kernel.client import Client, ClientError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The user's default run directory, which is not there, and the system's."""
    own, system = f"{tmp_path}/own", f"{tmp_path}/system"
    for module in (run_directory, client):
        monkeypatch.setattr(module, "default_run_dir", lambda: own)
        monkeypatch.setattr(module, "system_run_dir", lambda: system)
    return own, system


def options(run_dir=None, toml_path=None):
    return argparse.Namespace(run_dir=run_dir, toml_path=toml_path)


def test_mail_of_a_user_without_a_server_is_for_the_system_s(places):
    """A mail server runs `popkernel deliver` as the recipient, without flags."""
    own, system = places
    assert delivery_run_dir_of(options()) == system
    assert run_dir_of(options()) == own, "the operator's commands"
    os.mkdir(own)
    assert delivery_run_dir_of(options()) == own
    assert delivery_run_dir_of(options(run_dir="/other")) == "/other"
    assert delivery_run_dir_of(options(run_dir=own)) == own


def test_a_configuration_without_a_run_dir(places, tmp_path, monkeypatch):
    own, system = places
    monkeypatch.setattr("popkernel.kernel.config.loading.default_run_dir", lambda: own)
    with open(f"{tmp_path}/p.toml", "w") as file:
        file.write("listeners = 2\n")
    assert delivery_run_dir_of(options(toml_path=f"{tmp_path}/p.toml")) == system
    with open(f"{tmp_path}/p.toml", "a") as file:
        file.write('run_dir = "/run/two"\n')
    assert delivery_run_dir_of(options(toml_path=f"{tmp_path}/p.toml")) == "/run/two"


def test_no_mail_for_another_user_s_server(places, tmp_path, monkeypatch):
    """Everybody may make a directory of this name in /tmp."""
    own, system = places
    os.symlink(tmp_path, own)
    assert delivery_run_dir_of(options()) == own, "a link of one's own"
    os.unlink(own)
    os.mkdir(own)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert delivery_run_dir_of(options()) == system


def test_a_user_hears_of_the_system_s_server(places):
    own, system = places
    with pytest.raises(ClientError, match="no popkernel runs on .*/own; start it, or give") as caught:
        Client().probe("")
    assert caught.value.code == os.EX_UNAVAILABLE
    os.mkdir(system)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as control:
        control.bind(f"{system}/control.sock")
        with pytest.raises(
            ClientError, match=f"no popkernel runs on {own}; one runs on {system}: ask as root"
        ):
            Client().probe("")
        with pytest.raises(ClientError, match="start it, or give"):
            Client(f"{own}/other").probe("")
