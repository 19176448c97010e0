"""Test the benchmarks' arithmetic: ratios, verdicts, tables, plots, growth and parsers."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks import __main__ as program
from benchmarks import client, peer, plots, rows, series, server, table
from benchmarks.table import Figure, Line

RATE = Line("A", "work", "sessions/s", table.RATE, 0.6, 1.0)
TIME = Line("I1", "work", "ms", table.TIME, 4.0, 10.0)
AT_MOST = Line("K1", "work", "ms", table.AT_MOST, 1.5, 1.0)
BOUND = Line("J1", "work", "MB", table.BOUND, 0.25, 0.06)


@pytest.mark.parametrize(
    ("line", "theirs", "ours", "said"),
    [
        (RATE, 100, 59, "SHORT"),
        (RATE, 100, 60, "must"),
        (RATE, 100, 100, "reach"),
        (RATE, None, 100, "–"),
        (TIME, 40, 11, "SHORT"),
        (TIME, 40, 10, "must"),
        (TIME, 40, 4, "reach"),
        (TIME, None, 1, "–"),
        (AT_MOST, 1, 1.6, "SHORT"),
        (AT_MOST, 1, 1.5, "must"),
        (AT_MOST, 1, 0.9, "reach"),
        (BOUND, None, 0.3, "SHORT"),
        (BOUND, 0.55, 0.2, "must"),
        (BOUND, None, 0.05, "reach"),
        (BOUND, 0.55, None, "–"),
    ],
)
def test_verdicts(line, theirs, ours, said):
    assert table.verdict(line, theirs, ours) == said


def test_ratios_by_kind_of_line():
    assert table.ratio(RATE, 100, 150) == 1.5
    assert table.ratio(TIME, 30, 10) == 3
    assert table.ratio(AT_MOST, 2, 1) == 0.5
    assert table.ratio(RATE, 0, 1) is None


def test_every_row_is_measured_and_every_line_has_a_row():
    letters = {letter for each in rows.MEASURES for letter in each}
    assert {line.key[0] for line in table.LINES} == letters == set(program.ROWS) - {"M"}
    assert len({line.key for line in table.LINES}) == len(table.LINES)


def test_medians_and_the_table_of_what_was_measured():
    results = {
        ("peer", "A"): [Figure(100.0, 2.0), Figure(300.0, 4.0), Figure(200.0, 3.0)],
        ("ours", "A"): [Figure(240.0), Figure(260.0)],
    }
    text = table.markdown(results)
    lines = text.splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "A"
    assert cells[2:5] == ["200", "250 sessions/s", "1.25"]
    assert cells[7:] == ["reach", "3", "–", "240 to 260"]
    assert {line.count("|") for line in lines} == {len(table.HEAD) + 1}


def test_the_document_holds_facts_notes_and_further_sections():
    text = table.document({"machine": "a small one"}, {}, ["a note"], {"More": "words\n"})
    assert "- machine: a small one" in text
    assert "- a note" in text
    assert text.endswith("## More\n\nwords\n")


def test_numbers_are_short():
    assert [table.number(x) for x in (None, 0.12345, 12.345, 12345.6)] == ["–", "0.123", "12.3", "12,346"]
    assert [plots.short(x) for x in (0.25, 100, 10_000, 1e6)] == ["0.25", "100", "10k", "1M"]


def test_a_plot_is_xml_with_every_point_inside_and_its_words_escaped():
    picture = plots.svg(
        "a < b & c", "size", {"rate": [(1, 5), (1000, 500)], "memory": [(1, 0.2), (1000, 0.2)]}
    )
    root = ET.fromstring(picture)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 4
    assert all(plots.LEFT <= float(c.get("cx")) <= plots.WIDTH - plots.RIGHT for c in circles)
    assert all(plots.TOP <= float(c.get("cy")) <= plots.HEIGHT - plots.BOTTOM for c in circles)
    assert "a < b & c" in [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_of_one_point_and_of_none():
    assert "<circle" in plots.svg("one", "size", {"rate": [(10, 10)]})
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.svg("none", "size", {"rate": []})


def test_growth_beyond_linear_and_cliffs_are_found():
    assert series.growth([(100, 1.0), (1000, 10.0), (10_000, 90.0)]) == []
    assert series.growth([(100, 1.0), (1000, 20.0)]) == ["100 to 1000: size × 10, cost × 20"]
    assert series.cliffs([(1, 100.0), (10, 60.0), (100, 55.0)]) == []
    assert series.cliffs([(1, 100.0), (10, 40.0)]) == ["1 to 10: 100/s to 40/s"]
    assert series.judged([(1, 100.0, 10.0, True), (10, 200.0, 11.0, True)]) == []
    assert series.judged([(1, 1.0, 10.0, False), (10, 30.0, 11.0, False)]) == [
        "time, 1 to 10: size × 10, cost × 30"
    ]


def test_figures_of_the_client_are_read_and_a_session_that_read_too_little_is_an_error():
    figures = client.read_figures("ok=20 fail=0 wall=1.5 rate=13.3 messages=799\n")
    assert figures["rate"] == 13.3
    assert rows.figure((figures, 0.2)) == Figure(13.3, 10.0)
    with pytest.raises(client.LoadError, match="799 messages"):
        rows.figure((figures, 0.2), messages=40)


def test_the_client_gets_all_options():
    told = client.command(995, "STAT", "QUIT", users=3, first=200, pipelined=True, reps=7, hold=9, tls=False)
    assert told[0] == client.BINARY
    assert told[-2:] == ["STAT", "QUIT"]
    assert "-T" not in told
    assert ["-P", "-r", "7", "-H", "9"] == told[told.index("-P") : -2]


def test_control_groups_are_found_the_unified_one_first():
    mounts = (
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        "tmpfs /tmp tmpfs rw 0 0\n"
    )
    assert server.cgroup_roots(mounts) == [
        ("v2", "/sys/fs/cgroup/unified"),
        ("v1", "/sys/fs/cgroup/cpu,cpuacct"),
    ]
    assert server.cgroup_roots("") == []


def test_the_peer_s_configuration_fits_its_version():
    """A configuration for 2.4 has no word of 2.3, since 2.4 refuses unknown settings.

    tests/e2e/maildrop/test_migration.py asks a real Dovecot.
    """
    old = (
        peer.configuration("/site", cert="/c", key="/k", tls=1, plain=2, secure=False)
        + "pop3_uidl_format = %v-%u\n"
    )
    assert peer.in_words_of("2.3.19.1", old) == old
    new = peer.in_words_of("2.4.1-4", old)
    assert new.startswith("dovecot_config_version = 2.4.0\n")
    for word in (
        "ssl_cert ",
        "ssl_key ",
        "disable_plaintext_auth",
        "mail_location",
        " driver =",
        "args =",
        "service_count",
        "%u",
        "<",
    ):
        assert word in old and word not in new
    for line in (
        "ssl_server_cert_file = /c",
        "mail_driver = maildir",
        "mail_path = ~",
        "passdb passwd-file {",
        "userdb passwd-file {",
        " passwd_file_path = /site/users",
        "restart_request_count = unlimited",
        " restart_request_count = 1000",
        "pop3_uidl_format = %{uidvalidity}-%{uid}",
    ):
        assert line in new


def test_the_two_modes_of_the_peer_differ_in_their_processes():
    common = {"cert": "/c", "key": "/k", "tls": 1, "plain": 2}
    fast, secure = (peer.configuration("/site", secure=secure, **common) for secure in (False, True))
    assert "service_count = 0" in fast
    assert "service_count" not in secure
    assert "ssl_cert = </c" in fast
    assert fast.count("{") == fast.count("}")


def test_a_partial_run_does_not_replace_the_whole():
    whole = program.destination(program.arguments([]), "")[0]
    part = program.destination(program.arguments(["--rows", "A,c"]), "")[0]
    assert whole.endswith("benchmarks/results.md")
    assert part.endswith("build/results.md")
    assert program.destination(program.arguments([]), "no peer")[0] == part
    assert program.arguments(["--rows", "A,c"]).rows == "AC"


@pytest.mark.parametrize("wrong", [["--rows", "Z"], ["--rows", ""], ["--rounds", "0"], ["--extra", "other"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        program.arguments(wrong)
    assert "error" in capsys.readouterr().err
