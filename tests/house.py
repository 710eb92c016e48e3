"""Counts the things of the package: lines, classes, modules, import chains and circles.

``python tests/house.py`` prints the table; ``tests/test_house.py`` holds it to its limits.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src" / "equipoise"
OTHER = (".j2", ".yaml", ".yml", ".css", ".js", ".html", ".json", ".md")


def trees(src: Path = SRC) -> dict[str, ast.Module]:
    """Return the parsed modules by their dotted names."""
    found = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def lines(src: Path = SRC) -> tuple[int, int]:
    """Return the lines of Python, and those of templates, scripts, styles and YAML."""
    counts = [0, 0]
    for path in src.rglob("*"):
        if path.suffix == ".py" or path.suffix in OTHER:
            counts[path.suffix != ".py"] += path.read_bytes().count(b"\n")
    return counts[0], counts[1]


def classes(modules: dict[str, ast.Module]) -> list[tuple[str, str, bool]]:
    """Return (module, class, whether it is a dataclass) of every class, nested ones too."""
    found = []
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                data = any(mark.split("(")[0].endswith("dataclass") for mark in marks)
                found.append((module, node.name, data))
    return found


def twice(modules: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Return the class names that more than one module has."""
    homes: dict[str, set[str]] = {}
    for module, name, _ in classes(modules):
        homes.setdefault(name, set()).add(module)
    return {name: sorted(where) for name, where in homes.items() if len(where) > 1}


def imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Return the modules of the package that each imports, inside functions and types too."""
    packages = {name.rpartition(".")[0] for name in modules}
    found: dict[str, set[str]] = {}
    for module, tree in modules.items():
        here = module if module in packages else module.rpartition(".")[0]
        used = found.setdefault(module, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used |= {a.name for a in node.names if a.name in modules}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    up = here.split(".")[: len(here.split(".")) - node.level + 1]
                    base = ".".join([*up, *([base] if base else [])])
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    if inner in modules:
                        used.add(inner)
                    elif base in modules:
                        used.add(base)
        used.discard(module)
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import one another (strongly connected, two or more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = []
            while not members or members[-1] != node:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def deepest(graph: dict[str, set[str]]) -> list[str]:
    """Return the longest chain of imports; members of circles are not passed twice."""
    best: dict[str, list[str]] = {}

    def visit(node: str, passed: frozenset[str]) -> list[str]:
        if node not in best:
            below = [visit(n, passed | {node}) for n in graph[node] if n not in passed]
            best[node] = [node, *max(below, key=len, default=[])]
        return best[node]

    return max((visit(node, frozenset()) for node in graph), key=len)


def any_dicts(modules: dict[str, ast.Module]) -> int:
    """Return how often ``dict[str, Any]`` stands in the signature of a function."""
    count = 0
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                marks = [a.annotation for a in arguments if a.annotation] + (
                    [node.returns] if node.returns else []
                )
                count += sum(ast.unparse(m).count("dict[str, Any]") for m in marks)
    return count


def table(src: Path = SRC) -> dict[str, int]:
    """Return all counts by their names."""
    modules = trees(src)
    graph = imports(modules)
    python, other = lines(src)
    kinds = classes(modules)
    files = list(src.glob("*.py"))
    return {
        "lines of Python": python,
        "lines of templates, scripts, styles and YAML": other,
        "files": len(modules),
        "classes": len(kinds),
        "dataclasses": sum(data for *_, data in kinds),
        "class names in several modules": len(twice(modules)),
        "modules beside packages": len(files),
        "deepest import chain": len(deepest(graph)),
        "import circles": len(circles(graph)),
        "dict[str, Any] in signatures": any_dicts(modules),
    }


def main() -> None:
    """Print the table; with a folder, of the package there; with ``-v``, what stands behind it."""
    arguments = [a for a in sys.argv[1:] if a != "-v"]
    src = Path(arguments[0]) if arguments else SRC
    for name, value in table(src).items():
        print(f"{value:>7,}  {name}")
    if "-v" in sys.argv:
        modules = trees(src)
        graph = imports(modules)
        print(" > ".join(deepest(graph)))
        print("circles:", circles(graph))
        print("twice:", twice(modules))
        per = Counter(name.split(".")[1] if "." in name else name for name in modules)
        print(per.most_common())


if __name__ == "__main__":
    main()
