"""popkernel without its tap's branches, and its actors under valgrind: for benchmarks/trace.py, which compares with it.

Run as a program it is `popkernel start` whose listeners and maildir actors count their instructions. The program "never traced" is
the very same source, of which every `if watch.tap is not None` and `if ....shown is not None`, and what only they use, has been
taken away before it was compiled.
"""

import ast
import os
import py_compile
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 300.0  # seconds for an actor to start
removed = []  # "module:line" of each branch that is gone


def _is_tap(test):
    """Whether this is the question that costs a branch a message."""
    if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.IsNot) or not isinstance(test.left, ast.Attribute):
        return False
    return ast.unparse(test.left) == "watch.tap" or test.left.attr == "shown"


def _loads(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


class Untap(ast.NodeTransformer):
    """Takes the branches away."""

    def __init__(self, name):
        self.name = name

    def visit_If(self, node):
        self.generic_visit(node)
        asked = node.test.values[0] if isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And) else node.test
        if not _is_tap(asked):
            return node
        removed.append(f"{self.name}:{node.lineno}")
        return node.orelse or ast.Pass()

    def visit_FunctionDef(self, node):
        before = _loads(node)
        self.generic_visit(node)
        idle = before - _loads(node)

        class Forget(ast.NodeTransformer):
            def visit_Assign(self, assign):
                target = assign.targets[0]
                return ast.Pass() if isinstance(target, ast.Name) and target.id in idle else assign

        return Forget().visit(node)


def copy(place, *, tap):
    """A copy of popkernel, compiled, for an interpreter with `place` on its path; without the tap's branches, unless `tap`."""
    import popkernel.kernel.boot as somewhere

    source = os.path.dirname(os.path.dirname(os.path.abspath(somewhere.__file__)))
    for folder, _, files in os.walk(source, followlinks=True):
        into = os.path.join(place, "popkernel", os.path.relpath(folder, source))
        os.makedirs(into, mode=0o755, exist_ok=True)
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(into, name)
                with open(os.path.join(folder, name)) as file:
                    tree = ast.parse(file.read())
                tree = tree if tap else ast.fix_missing_locations(Untap(name).visit(tree))
                with open(path, "w") as file:
                    file.write(ast.unparse(tree))
                py_compile.compile(path, doraise=True)


def become(place):
    """In a fresh interpreter, which init has started: the actor its arguments name."""
    sys.path.insert(0, place)
    from popkernel.kernel import title

    title.set_title = lambda name: None  # it writes where valgrind keeps its own options
    from popkernel.kernel import boot
    from popkernel.kernel.sandbox import lock

    assert boot.__file__.startswith(place)
    lock.set_limits = lambda **_: None  # valgrind lives in this process too, and needs more
    boot.main()


WRAPPER = """#!/bin/sh
shift  # -I: the environment, with the hash seed, counts here
for name; do :; done
case " $* " in
*" listener.0 "*|*" spawner "*)
    exec valgrind --vgdb=no --tool=cachegrind --cache-sim=no --branch-sim=no --cachegrind-out-file=/dev/null --log-file={counts}/%p \\
        {python} "$@" ;;
esac
exec {python} "$@"
"""


def main():
    """`python untapped.py VARIANT DIRECTORY start ...`: DIRECTORY gets a file a process, with its count."""
    from popkernel.cli.main import main as popkernel
    from popkernel.kernel import init, singletons, stopping

    singletons._START_PATIENCE = PATIENCE  # noqa: SLF001  valgrind is slow, and slower where others work
    stopping.Stopping._hurry = lambda *_: None  # noqa: SLF001
    variant, counts = sys.argv.pop(1), sys.argv.pop(1)
    wrapper = os.path.join(counts, "python")
    with open(wrapper, "w") as file:
        file.write(WRAPPER.format(counts=counts, python=sys.executable))
    os.chmod(wrapper, 0o755)
    copy(counts, tap=variant != "never")
    assert (len(removed) > 15) == (variant == "never"), removed
    code = f"import sys; sys.path.insert(0, {HERE!r}); import untapped; untapped.become({counts!r})"
    init.BOOT = ["-c", code]
    execve = os.execve
    os.execve = lambda path, arguments, env: execve(wrapper, arguments, {**env, "PYTHONHASHSEED": "0"})
    raise SystemExit(popkernel())


if __name__ == "__main__":
    main()
