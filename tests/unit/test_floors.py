"""Check the floors: which modules may import which, and how large a folder may be."""

import ast
import os
import re

import popkernel.kernel
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FLOORS = ("proto", "kernel", "actors", "cli")
ACTORS = sorted(
    name for name in os.listdir(f"{ROOT}/actors") if os.path.isfile(f"{ROOT}/actors/{name}/__init__.py")
)

# Modules of the standard library that proto may import: none reads, waits, or depends on the moment.
PURE = {
    "__future__",
    "array",
    "base64",
    "binascii",
    "collections",
    "csv",
    "enum",
    "functools",
    "hashlib",
    "ipaddress",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
    "struct",
    "typing",
    "types",
    "bisect",
    "heapq",
    "copy",
    "dataclasses",
    "json",
}
# The folders of kernel/, lowest first: none imports a later one.
ROOMS = (
    "sandbox",
    "runtime",
    "config",
    "decisions",
    "processes",
    "resources",
    "spawner",
    "operator",
    "supervisor",
    "init",
    "replay",
    "client",
)
# Cores outside proto that are pure too, each of whose methods takes an event and returns actions.
CORES = (
    "kernel/decisions",
    "actors/listener/session",
    "actors/mda/limits.py",
    "actors/mda/route.py",
    "actors/mda/transaction.py",
)
LARGEST_FOLDER = 16  # modules
LOADED_WHERE_CONFIGURED = {"actors/auth/tokens.py": {"json"}}  # PyJWT imports it anyway


def files(*folders):
    return list(found(*folders))


def found(*folders):
    for folder in folders:
        for place, _, inside in os.walk(f"{ROOT}/{folder}"):
            yield from (
                os.path.relpath(os.path.join(place, name), ROOT)
                for name in sorted(inside)
                if name.endswith(".py")
            )


def parsed(path):
    with open(f"{ROOT}/{path}", "rb") as file:
        return ast.parse(file.read(), path)


def imports(path):
    """Return every module that a file imports, by full name; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def floors(path):
    """Return the parts of popkernel that a file imports: {"proto", "kernel", "actors.listener", ...}."""
    ours = [name.split(".")[1:] for name in imports(path) if name.startswith("popkernel.")]
    return {f"actors.{name[1]}" if name[0] == "actors" and len(name) > 1 else name[0] for name in ours}


def module(path):
    return "popkernel." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(name):
    """Return the rank of a module's folder in kernel/; -1 for other modules."""
    parts = name.split(".")
    return ROOMS.index(parts[2]) if parts[:2] == ["popkernel", "kernel"] and len(parts) > 2 else -1


def circles(graph):
    """Return sets of modules that import one another (Tarjan's strongly connected components)."""
    number, lowest, stack, out = {}, {}, [], []

    def visit(name):
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                out.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in number:
            visit(name)
    return out


def test_no_circle_of_modules():
    """Imports within functions and for the type checker alone count too."""
    modules = {module(path): path for path in files(*FLOORS)}
    graph = {name: sorted(imports(path) & set(modules) - {name}) for name, path in modules.items()}
    assert circles(graph) == []


def taken(path):
    """Yield (module, name there, name here) for each name that a file takes from a module of popkernel."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("popkernel."):
            yield from ((node.module, alias.name, alias.asname or alias.name) for alias in node.names)


def test_a_name_is_taken_from_the_module_that_defines_it():
    """`__all__` lists only a module's own names."""
    modules = {module(path): path for path in files(*FLOORS)}
    borrowed = {name: {here for _, _, here in taken(path)} for name, path in modules.items()}
    second_hand = [
        f"{path}: {one} from {name}"
        for path in files(*FLOORS, "tests", "benchmarks")
        for name, one, _ in taken(path)
        if one in borrowed.get(name, ()) and f"{name}.{one}" not in modules
    ]
    assert second_hand == []
    listed = {
        path: sorted(set(ast.literal_eval(node.value)) & borrowed[name])
        for name, path in modules.items()
        for node in parsed(path).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    assert {path: names for path, names in listed.items() if names} == {}


def test_circles_are_found():
    graph = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": ["d"], "f": ["a"], "g": []}
    assert circles(graph) == [["d", "e"], ["a", "b", "c"]]


@pytest.mark.parametrize("path", files("kernel"))
def test_no_room_of_the_kernel_imports_a_higher_one(path):
    if path != "kernel/__init__.py":
        assert all(room(name) <= room(module(path)) for name in imports(path)), path


@pytest.mark.parametrize("folder", sorted({os.path.dirname(path) for path in files(*FLOORS)}))
def test_no_folder_has_too_many_modules(folder):
    modules = [
        name for name in os.listdir(f"{ROOT}/{folder}") if name.endswith(".py") and name != "__init__.py"
    ]
    assert len(modules) <= LARGEST_FOLDER


@pytest.mark.parametrize("path", files("proto"))
def test_proto_is_pure(path):
    assert floors(path) <= {"proto"}
    tops = {name.partition(".")[0] for name in imports(path)} - {"popkernel"}
    assert tops <= PURE | {"msgpack"}
    called = {
        node.func.id
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "input", "print", "eval", "__import__"}


@pytest.mark.parametrize("path", [p for p in files("kernel", "actors") if p.startswith(CORES)])
def test_cores_are_pure(path):
    """They import proto and one another."""
    ours = {name for name in imports(path) if name.startswith("popkernel.") and name.split(".")[1] != "proto"}
    places = tuple(module(core) for core in CORES)
    assert {name for name in ours if not name.startswith(places)} == set()
    assert {name.partition(".")[0] for name in imports(path)} <= PURE | {"popkernel"}


@pytest.mark.parametrize("path", files("kernel"))
def test_the_kernel_knows_no_actor_and_no_command(path):
    assert floors(path) <= {"proto", "kernel"}


@pytest.mark.parametrize("path", files("actors"))
def test_actors_never_know_one_another(path):
    mine = path.split(os.sep)[1]
    assert floors(path) <= {"proto", "kernel", *([f"actors.{mine}"] if mine in ACTORS else [])}


def test_every_module_that_an_actor_row_names_is_there():
    from popkernel.proto.topology import ACTORS as ROWS

    for row in ROWS:
        assert os.path.isfile(f"{ROOT}/{row.module.removeprefix('popkernel.').replace('.', '/')}.py"), (
            row.module
        )


@pytest.mark.parametrize("path", files("actors", "kernel/sandbox"))
def test_nothing_heavy_or_late_in_actors(path):
    """Some imports cost memory in every actor; others would fail at run time, after the lock."""
    tops = {name.partition(".")[0] for name in imports(path)} - LOADED_WHERE_CONFIGURED.get(path, set())
    assert not tops & {
        "asyncio",
        "logging",
        "multiprocessing",
        "subprocess",
        "dataclasses",
        "inspect",
        "concurrent",
        "zmq",
        "json",
        "shutil",
        "tempfile",
    }


@pytest.mark.parametrize("path", files("proto", "kernel", "actors"))
def test_no_codec_that_would_be_a_file_to_import(path):
    """After the lock only CPython's built-in codecs can be had; looking up another one fails."""
    built_in = {"utf-8", "utf8", "ascii", "latin-1", "latin1", "iso-8859-1", "strict"}
    for node in ast.walk(parsed(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("encode", "decode")
            and node.args
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                assert first.value.lower() in built_in, f"{path}:{node.lineno}: {first.value}"


@pytest.mark.parametrize("path", files(*FLOORS))
def test_a_file_says_what_it_is_for(path):
    tree = parsed(path)
    assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"


def test_the_tests_import_this_tree():
    assert os.path.realpath(os.path.dirname(popkernel.kernel.__file__)) == os.path.realpath(f"{ROOT}/kernel")


# it makes some
@pytest.mark.parametrize(
    "path", [path for path in files("tests", "benchmarks") if path != "tests/unit/test_distribution.py"]
)
def test_modules_that_a_text_names_are_there(path):
    """Tests pass code to other interpreters as text, which no tool checks when a module moves."""
    with open(f"{ROOT}/{path}") as file:
        found = re.findall(r"from popkernel\.([\w.]+) import (\w[\w, ]*)", file.read())
    for module, names in found:
        place = f"{ROOT}/{module.replace('.', '/')}"
        assert os.path.isfile(f"{place}.py") or os.path.isdir(place), f"{path}: {module}"
        for name in (item.split()[0] for item in names.split(",") if item.strip() and os.path.isdir(place)):
            assert os.path.isfile(f"{place}/{name}.py") or os.path.isdir(f"{place}/{name}"), (
                f"{path}: {module}.{name}"
            )
