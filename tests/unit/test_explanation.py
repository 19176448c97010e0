"""Test cli/common/explanation.py: what an answer of the server is in words."""

from popkernel.cli.common.explanation import account, summary

ANSWER = {"user": "alice", "address": "", "kept": True, "sessions": [], "logins": [], "deliveries": []}


def short(**more):
    return list(summary({**ANSWER, **more}))


def session(address, **more):
    return {"session": "1.1", "user": "alice", "address": address, "why": "quit", "retrieved": 1, **more}


def test_a_user_of_whom_no_login_is_known():
    hint = "no login with this name is known; did the client use another? popkernel explain ADDRESS"
    assert hint in short()
    assert hint not in short(logins=[{"event": "login.failed", "reason": "password"}])
    assert hint not in short(sessions=[session("192.0.2.7:1")])
    assert hint not in short(open=[{"session": "1.2"}])
    assert hint not in short(user="", address="192.0.2.7")


def test_mail_that_two_programs_read():
    several = "they came from 2 addresses: are there several mail programs or devices?"
    assert several in short(sessions=[session("192.0.2.7:1"), session("192.0.2.8:1")])
    assert several not in short(sessions=[session("192.0.2.7:1"), session("192.0.2.7:2")])
    assert several not in short(sessions=[session("192.0.2.7:1"), session("192.0.2.8:1", marked=1)])
    assert several not in short(user="", sessions=[session("192.0.2.7:1"), session("192.0.2.8:1")])


def test_connections_that_could_not_log_in():
    faults = [{"event": "tls.failed", "address": "192.0.2.7:1", "reason": "the client offers TLS 1.2"}] * 2
    assert "2 connections could not log in: the client offers TLS 1.2" in short(logins=faults)
    wrong = {"event": "login.failed", "address": "192.0.2.7:1", "reason": "password"}
    (first, *_) = short(logins=[wrong, *faults])
    assert first == "0 sessions, 1 login that failed, 2 connections without a login, 0 mails shown"
    (first, *_) = short(logins=[wrong])
    assert first == "0 sessions, 1 login that failed, 0 mails shown"


def test_a_delay_has_its_address():
    said = list(account({**ANSWER, "wait_seconds": 14.2, "wait_address": "192.0.2.7"}))
    assert "  a login from 192.0.2.7 would be delayed by 14 s, or refused, after failed logins" in said
