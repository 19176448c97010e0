"""Test the table of other servers: its recipes, its arithmetic, its page, and the check of the mail."""

import os

import pytest

from benchmarks.mailsite import Site
from benchmarks.peers import __main__ as program
from benchmarks.peers import measure, page, place
from benchmarks.peers.page import Result
from benchmarks.peers.recipe import Recipe

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RECIPE = Recipe(
    key="other",
    name="Other",
    system="other",
    release="trixie",
    packages=("other-pop3d", "other-common"),
    program="/usr/sbin/other",
    language="C",
    separation="none",
    source="other(8)",
    prepare=lambda place: "true",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(str(tmp_path_factory.mktemp("site")), quick=True, users=3, active=2)


def test_every_recipe_says_what_the_table_and_the_systems_need():
    assert {"popkernel", "courier", "cyrus", "mailutils", "popa3d", "solid"} < set(program.RECIPES)
    assert {key for key in program.RECIPES if key.startswith("dovecot")} == {
        "dovecot23-fast",
        "dovecot23-secure",
        "dovecot24-fast",
        "dovecot24-secure",
    }
    for recipe in program.RECIPES.values():
        assert recipe.language and recipe.separation and recipe.source
        assert (recipe.system is None) == (recipe.prepare is None) == (not recipe.packages)


def test_modes_of_one_server_share_a_system():
    lines = program.packages()
    assert len({line.split()[0] for line in lines}) == len(lines)
    assert "dovecot24 trixie dovecot-pop3d" in lines
    assert all(len(line.split()) >= 3 for line in lines)


def test_a_missing_server_names_its_packages():
    said = program.missing(RECIPE, "/systems")
    assert "other-pop3d other-common" in said
    assert "IN=/systems sh benchmarks/peers/systems.sh other" in said
    assert program.missing(program.RECIPES["dovecot24-fast"], "/systems").startswith("Dovecot,")
    assert place.root_for("/nowhere", RECIPE) == ("", "")


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--rounds", "0"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        program.arguments(wrong)
    assert "error" in capsys.readouterr().err


def test_a_line_has_medians_and_a_cell_for_each_column():
    result = Result(RECIPE, "1.2", "1.2, 1.3", [1, 300, 200], [2000.4], [10, 20, 30], [])
    cells = [cell.strip() for cell in page.row(result).strip("|").split("|")]
    assert cells == ["Other", "1.2", "C", "200", "2,000", "20", "none (other(8))", "1.2, 1.3"]
    assert len(cells) == len(page.HEAD)


def test_a_line_says_who_does_tls_what_store_and_what_is_parked():
    recipe = RECIPE._replace(tls="stunnel4", store="mbox", source="https://example.org/")
    cells = page.row(Result(recipe, "1", "", [], [], [5], [1])).split(" | ")
    assert cells[0] == "| Other (mbox)"
    assert cells[3:6] == ["–", "–", "5; parked 1"]
    assert cells[6] == "none (<https://example.org/>)"
    assert cells[7] == "none itself; stunnel4: – |"


def test_the_table_replaces_the_old_one_on_its_page(tmp_path):
    path = tmp_path / "peers.md"
    path.write_text(f"# Head\n\n{page.BEGIN}\nformer\n{page.END}\n\ntail\n")
    page.replace(path, page.section({"date": "now"}, [], ["a note"]))
    text = path.read_text()
    assert "former" not in text
    assert text.startswith("# Head\n") and text.endswith("\ntail\n")
    assert "- date: now\n" in text and "- a note\n" in text
    path.write_text("no marks\n")
    with pytest.raises(ValueError, match="missing"):
        page.replace(path, "")


def test_the_page_has_a_place_for_the_table():
    with open(f"{ROOT}/docs/peers.md", encoding="utf-8") as file:
        text = file.read()
    assert text.index(page.BEGIN) < text.index(page.END)


def test_wrong_mail_is_found(site):
    given = measure.expected(site, "user0000")
    assert len(given) == 40
    assert given[0].startswith(b"From: a@example.org\r\n")
    measure.compare("user0000", given, list(given))
    changed = [given[0][:-3] + b"!\r\n", *given[1:]]
    for got, said in (
        (given[1:], "39 messages"),
        (changed, "different from octet"),
        (sorted([*given[1:], b"x"]), "arrives as"),
    ):
        with pytest.raises(measure.WrongMailError, match=said):
            measure.compare("user0000", given, got)


def test_a_server_may_add_header_fields_if_its_recipe_says_so(site):
    given = measure.expected(site, "user0001")
    blank = b"\r\n\r\n"
    got = [
        b"Received: here\r\n" + mail.replace(blank, b"\r\nDate: now" + blank, 1) for mail in reversed(given)
    ]
    measure.compare("user0001", given, got, added=True)
    with pytest.raises(measure.WrongMailError):
        measure.compare("user0001", given, got)
    got[0] += b"more\r\n"
    with pytest.raises(measure.WrongMailError):
        measure.compare("user0001", given, got, added=True)


def test_a_place_has_the_mail_and_lies_over_the_system_s_files(site, tmp_path):
    for path, text in (
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\nother:x:77:78::/:/bin/sh\n"),
        ("etc/shadow", "root:*::::::: \n"),
        ("etc/group", "root:x:0:\n"),
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "etc").chmod(0o751)
    there = place.Place(site, RECIPE, str(tmp_path))
    assert there.owner("other") == (77, 78)
    there.system_users()
    with open(f"{there.files}/etc/passwd") as file:
        users = file.read().splitlines()
    assert users[:2] == ["root:x:0:0::/root:/bin/sh", "other:x:77:78::/:/bin/sh"]
    assert [line.split(":")[0] for line in users[2:]] == ["user0000", "user0001"]
    assert os.stat(f"{there.files}/etc").st_mode & 0o777 == 0o751
    assert len(os.listdir(f"{there.binds[place.MAIL]}/user0001/new")) == 40
    assert (tmp_path / "etc/passwd").read_text().count("user") == 0
