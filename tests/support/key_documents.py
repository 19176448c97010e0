"""Write the configuration keys into the sample configuration and the manual.

`python -m tests.support.key_documents`. The source is kernel/config/keys.py. Existing descriptions stay.
Values, bounds, defaults, ports, the order and the list of keys that a reload applies are written anew, and
missing keys are added. tests/unit/test_config_rows.py fails where the files differ from what this writes.
"""

import os
import re
import textwrap

from popkernel.kernel.config.keys import keys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAMPLE = os.path.join(ROOT, "packaging", "popkernel.toml")
MANUAL = os.path.join(ROOT, "docs", "popkernel.8")
OWN_WORDS = {"isolation"}  # keys whose description differs from the help
REST = " ;\nall other keys take effect at the next start.\n.Bl -tag -width Ds\n"
LISTS = ("certs", "users", "domains", "networks", "quotas")


def sentence(key):
    doc = key.metadata["doc"]
    return doc[0].upper() + doc[1:]


def value(key):
    """Return the default as TOML; "" if it is empty or depends on the machine."""
    if key.metadata["kind"] == "bool":
        return "true" if key.default else "false"
    if key.metadata["kind"] == "int":
        return str(key.default)
    return f'"{key.default}"' if key.default else ""


# -- packaging/popkernel.toml
def hint(key):
    rules = key.metadata
    if key.name == "run_dir":
        return "default for root"
    if key.name == "hostname":
        return "default: the machine's; an example"
    if not value(key):
        return "no default; an example"
    if rules["kind"] == "int":
        return f"{rules['low']} to {rules['high']}"
    return " or ".join(f'"{choice}"' for choice in rules["choices"]) if key.name not in OWN_WORDS else ""


def sample(text):
    head, *blocks = text.rstrip("\n").split("\n\n")
    words = {
        found[2]: found[1] for found in (re.fullmatch(r"# (.*)\.\n#(\w+) = .*", block) for block in blocks)
    }
    for key in keys():
        said, of = words.get(key.name, sentence(key)), hint(key)
        if of:
            said = re.sub(r" \((no default|default|[-\d]+ to|\"[\w.-]+\" or)[^()]*\)$", "", said) + f" ({of})"
        head += f"\n\n# {said}.\n#{key.name} = {value(key) or key.metadata['example']}"
    return head + "\n"


# -- docs/popkernel.8
def default(key):
    rules = key.metadata
    if key.name == "hostname":
        return "Default the machine's."
    if not value(key):
        return ""
    if rules["kind"] == "int":
        return f"Default {value(key)}, {rules['low']} to {rules['high']}."
    of = "; one of " + ", ".join(f'"{choice}"' for choice in rules["choices"]) if rules["choices"] else ""
    return f"Default {value(key)}{of}."


def entry(key):
    """Return the text for a key that the manual does not have yet."""
    kind = key.metadata["kind"]
    lists = (
        f"A list of addresses, port {key.metadata['low']} unless given."
        if kind == "addresses"
        else "A list."
        if kind in LISTS
        else ""
    )
    lines = [*textwrap.wrap(sentence(key) + ".", 80, break_on_hyphens=False), lists, default(key)]
    return "\n".join(line for line in lines if line) + "\n"


def named(names):
    """Join names in mdoc."""
    *most, last = names
    lines = textwrap.wrap(" , ".join(most), 74)
    # mdoc takes a comma for punctuation only at the end of a line.
    joined = "\n".join(
        f".Cm {line.removeprefix(', ')}" + (" ," if at < len(lines) - 1 and not line.endswith(",") else "")
        for at, line in enumerate(lines)
    )
    return f"{joined}\nand\n.Cm {last}\n"


def manual(text):
    head, _, rest = text.partition("A reload puts\n")
    _, found, rest = rest.partition(REST)
    assert found, f"docs/popkernel.8 lacks {REST!r}"
    items, _, tail = rest.partition(".El\n")
    bodies = dict(re.findall(r"(?ms)^\.It Cm (\w+)\n(.*?)(?=^\.It Cm |\Z)", items))
    for key in keys():
        body = bodies.get(key.name) or entry(key)
        body = re.sub(r"(?m)^Default .*\.$", default(key), body)
        if key.metadata["kind"] == "addresses":
            body = re.sub(r"port \d+ unless given", f"port {key.metadata['low']} unless given", body)
        bodies[key.name] = body
    files = [key.name for key in keys() if key.metadata["kind"] in ("file", "certs")]
    reload = (
        named([key.name for key in keys() if key.metadata["reload"]])
        + "in force, and reads anew the files of\n"
        + named(files).rstrip("\n")
    )
    made = "".join(f".It Cm {key.name}\n{bodies[key.name]}" for key in keys())
    return f"{head}A reload puts\n{reload}{REST}{made}.El\n{tail}"


def entries(text):
    """Return the manual's text of each key, in one line."""
    items = text.partition(".Sh CONFIGURATION\n")[2].partition(".El\n")[0]
    return {
        name: " ".join(body.split())
        for name, body in re.findall(r"(?ms)^\.It Cm (\w+)\n(.*?)(?=^\.It Cm |\Z)", items)
    }


def read(path):
    with open(path) as file:
        return file.read()


def main():
    for path, made in ((SAMPLE, sample), (MANUAL, manual)):
        text = made(read(path))
        with open(path, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
