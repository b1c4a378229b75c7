"""Figures of the house, measured from its source; ``python -m tests.house`` prints them."""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

FUSIONS = ("CoFusion", "CrossFusion", "ReleasedCrossFusion")
ARGUMENTS = 6


@dataclass(frozen=True)
class Source:
    """One file of a package: its path inside it, its dotted name there, its lines and its syntax tree."""

    file: str
    name: str
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first-level folder or file."""
        return self.file.split("/")[0].removesuffix(".py")


@cache
def read(package: Path) -> tuple[Source, ...]:
    """Parse every file of a package once."""
    return tuple(_source(package, path) for path in sorted(package.rglob("*.py")))


def _source(package: Path, path: Path) -> Source:
    file = path.relative_to(package)
    parts = (package.name, *file.with_suffix("").parts)
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Source(file.as_posix(), name, len(text.splitlines()), ast.parse(text))


def _top_level(statements: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported: not in functions, not under ``TYPE_CHECKING``."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from _top_level(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(statement, block, []))


def graph(package: Path) -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports at the top."""
    names = {source.name for source in read(package)}
    edges: dict[str, set[str]] = {}
    for source in read(package):
        found = edges.setdefault(source.name, set())
        for node in _top_level(source.tree.body):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & names
            else:  # `from room import file` needs the file, `from room import name` the room
                for alias in node.names:
                    found |= {f"{node.module}.{alias.name}", str(node.module)} & names - {source.name}
    return edges


def chain(package: Path) -> list[str]:
    """The longest chain of imports at the top of modules, the importer first.

    Raises:
        RecursionError: There is a circle.
    """
    edges = graph(package)

    @cache
    def longest(name: str) -> tuple[str, ...]:
        return (name, *max((longest(target) for target in sorted(edges[name])), key=len, default=()))

    return list(max((longest(name) for name in edges), key=len, default=()))


def circles(package: Path) -> list[str]:
    """Modules that import themselves by way of others; those that a circle only leads to or from are left out."""
    edges = graph(package)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += edges[name]
        return seen

    return [name for name in sorted(edges) if name in reached(name)]


def rooms(package: Path) -> Counter[str]:
    """Lines by room."""
    found: Counter[str] = Counter()
    for source in read(package):
        found[source.room] += source.lines
    return found


def big_rooms(package: Path, share: float) -> set[str]:
    """Rooms with more than this share of all lines."""
    lines = rooms(package)
    return {room for room, count in lines.items() if count > share * lines.total()}


def folders(package: Path) -> Counter[str]:
    """Files by folder."""
    return Counter(str(Path(source.file).parent) for source in read(package))


def full_folders(package: Path, most: int) -> dict[str, int]:
    """Folders with more files than that."""
    return {folder: count for folder, count in folders(package).items() if count > most}


def odd_files_of_cli(package: Path, commands: Iterable[str]) -> set[str]:
    """Files of the command line that are neither a command, nor options, nor what is shown."""
    allowed = {"__init__", "options", "show", *commands}
    return {Path(source.file).stem for source in read(package) if source.room == "cli"} - allowed


def task_imports(package: Path) -> set[str]:
    """Imports of one task folder by another, or by a file directly in ``tasks/``, as ``file -> folder``."""
    own = {Path(source.file).parts[1] for source in read(package) if len(Path(source.file).parts) > 2}
    own &= {Path(s.file).parts[1] for s in read(package) if s.room == "tasks" and len(Path(s.file).parts) > 2}
    found = set()
    for source in read(package):
        if source.room != "tasks":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for parts in (name.split(".") for name in names):
                if parts[1:2] == ["tasks"] and parts[2] in own and Path(source.file).parts[1] != parts[2]:
                    found.add(f"{source.file} -> {parts[2]}")
    return found


def part_imports(package: Path) -> set[str]:
    """Imports of one term by another, of one preset by another, and of a term by name outside presets."""
    found = set()
    for source in read(package):
        parts = Path(source.file).parts
        for node in ast.walk(source.tree):
            name = str(node.module).split(".") if isinstance(node, ast.ImportFrom) else []
            if name[1:3] == ["pretraining", "terms"] and len(name) > 3:
                allowed = parts[0] == "methods" or parts[-2:] == ("terms", "__init__.py")
                found |= set() if allowed else {f"{source.file} -> {name[3]}"}
            if name[1:2] == ["methods"] and len(name) > 2 and parts != ("methods", "__init__.py"):
                found.add(f"{source.file} -> {name[2]}")
    return found


def fusion_names(package: Path) -> set[str]:
    """Files outside ``fusion/`` that name a fusion class."""
    return {
        source.file
        for source in read(package)
        if source.room != "fusion"
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Name) and node.id in FUSIONS)
        or (isinstance(node, ast.Attribute) and node.attr in FUSIONS)
        or (isinstance(node, ast.alias) and node.name in FUSIONS)
    }


def renames(package: Path) -> set[str]:
    """Files that rename a path: ``.rename(…)`` or ``.replace(…)`` with one argument (a string's takes two)."""
    return {
        source.file
        for source in read(package)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("rename", "replace")
        and ast.unparse(node.func.value) not in ("dataclasses", "copy")
        and (len(node.args) == 1 or ast.unparse(node.func.value) == "os")
        and not node.keywords
    }


def wide(package: Path, limit: int = ARGUMENTS) -> dict[str, int]:
    """Functions outside ``cli/`` with more arguments than ``limit``, ``self`` and ``cls`` left out."""
    found = {}
    for source in read(package):
        for name, node in _functions(source.tree, source.name):
            count = len([a for a in _arguments(node) if a not in ("self", "cls")])
            if source.room != "cli" and count > limit:
                found[name] = count
    return found


def _functions(tree: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        inner = f"{name}.{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else name
        if isinstance(node, ast.FunctionDef):
            yield inner, node
        yield from _functions(node, inner)


def _arguments(node: ast.FunctionDef) -> list[str]:
    given = node.args
    return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def negatives(package: Path) -> set[str]:
    """Files whose errors expect "nothing …": a text given as ``expected=``, or by a variable of that name."""
    found = set()
    for source in read(package):
        for node in ast.walk(source.tree):
            value = node.value if isinstance(node, ast.keyword) and node.arg == "expected" else None
            if isinstance(node, ast.Assign) and "expected" in ast.unparse(node.targets[0]):
                value = node.value
            texts = [] if value is None else [n.value for n in ast.walk(value) if isinstance(n, ast.Constant)]
            if any(isinstance(text, str) and text.startswith("nothing") for text in texts):
                found.add(source.file)
    return found


def conftest_imports(folder: Path) -> set[str]:
    """Tests that import a conftest."""
    return {
        source.file
        for source in read(folder)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and "conftest" in ast.unparse(node)
    }


def commands(app: "App", names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of every command: options outside groups, and words of its help."""
    found = {}
    for name in names:
        shown = [a for a in app[name].assemble_argument_collection(parse_docstring=True) if a.show]
        plain = [a for a in shown if {group._name for group in a.parameter.group} <= {"Parameters", "Arguments"}]
        text = " ".join([app[name].help, *(a.parameter.help or "" for a in shown)])
        found[name] = (len(plain), len(text.split()))
    return found


def crowded(app: "App", names: Iterable[str], most: int) -> dict[str, int]:
    """Commands that show more options outside groups than that."""
    return {name: plain for name, (plain, _) in commands(app, names).items() if plain > most}


def main() -> None:
    """Print the figures."""
    from adaptmed import cli

    package = Path(__file__).parents[1] / "adaptmed"
    lines, links = rooms(package), chain(package)
    (room, most), (folder, files) = lines.most_common(1)[0], folders(package).most_common(1)[0]
    print(f"deepest chain: {len(links)}: {' > '.join(links)}")
    print(f"biggest room: {room}, {most / lines.total():.1%} of {lines.total()} lines")
    print(f"fullest folder: {folder}, {files} files")
    print(f"functions above {ARGUMENTS} arguments: {len(wide(package))}")
    found = commands(cli.build(), cli.COMMANDS)
    widest = max(found, key=lambda name: found[name][0])
    print(f"widest command outside groups: {widest}, {found[widest][0]} options")
    print(f"help of all commands: {sum(words for _, words in found.values())} words")


if __name__ == "__main__":
    main()
