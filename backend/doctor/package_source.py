"""Looks up classes and their members in the source of an installed package, without importing it."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Parameters = tuple[str, ...]

MAX_BASES = 16
"""Bound on the depth of a chain of re-exports or base classes."""


@dataclass
class Namespace:
    """The names that a module or class defines.

    Attributes:
        members: by name: parameters of a function without ``self``; None for anything else.
        classes: classes by name.
        imported: local name -> path in the package of the module, or of the name in a module, that it stands for.
        bases: base classes as written, without type parameters.
    """

    members: dict[str, Parameters | None] = field(default_factory=dict)
    classes: dict[str, Namespace] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)
    bases: tuple[str, ...] = ()


class PackageSource:
    """The source of one package.

    Args:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._module = functools.cache(self._parse)

    def has_module(self, module: str) -> bool:
        """Whether the package has this module; the name is relative to the package."""
        return self._module(module) is not None

    def functions(self, module: str) -> dict[str, Parameters | None] | None:
        """Names of a module, imported ones of this package included: parameters of functions, None for anything else.

        None if the package has no such module.
        """
        found = self._module(module)
        if found is None:
            return None
        return {name: self._imported(path) for name, path in found.imported.items()} | found.members

    def _imported(self, path: str, depth: int = MAX_BASES) -> Parameters | None:
        module, _, name = path.rpartition(".")
        found = self._module(module)
        if found is None or not depth:
            return None
        if name in found.imported and name not in found.members:
            return self._imported(found.imported[name], depth - 1)
        return found.members.get(name)

    def members(self, module: str, owner: str) -> dict[str, Parameters | None] | None:
        """Members of a class with those of its base classes, by name; None if there is no such class.

        Includes the attributes that its methods set on ``self``.
        """
        found = self._class(module, owner)
        return None if found is None else self._with_bases(*found, MAX_BASES)

    def _with_bases(self, module: str, found: Namespace, depth: int) -> dict[str, Parameters | None]:
        members = dict(found.members)
        for base in found.bases if depth else ():
            inherited = self._class(module, base)
            if inherited is not None and inherited[1] is not found:
                members = self._with_bases(*inherited, depth - 1) | members
        return members

    def _class(self, module: str, owner: str, depth: int = MAX_BASES) -> tuple[str, Namespace] | None:
        """The class and the module that defines it, through imports."""
        found = self._module(module)
        if found is None or not depth:
            return None
        if owner in found.classes:
            return module, found.classes[owner]
        first, dot, rest = owner.partition(".")
        if first not in found.imported:
            return None
        defining, _, name = f"{found.imported[first]}{dot}{rest}".lstrip(".").rpartition(".")
        return self._class(defining, name, depth - 1)

    def _parse(self, module: str) -> Namespace | None:
        base = self.root.joinpath(*module.split(".")) if module else self.root
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                try:
                    tree = ast.parse(path.read_bytes())
                except (SyntaxError, ValueError):  # a newer Python's syntax, or a damaged file
                    return None
                return _namespace(tree.body, self.root.name, package)
        return None


def installed(package: str) -> PackageSource | None:
    """The source of an installed package; None if it is not installed. Does not import it."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return PackageSource(Path(next(iter(places)))) if places else None


def _namespace(body: list[ast.stmt], root: str, package: str) -> Namespace:
    found = Namespace()
    for node in _statements(body):
        if isinstance(node, FunctionNode):
            found.members[node.name] = _parameters(node)
            found.members |= dict.fromkeys(_set_on_self(node)) | found.members
        elif isinstance(node, ast.ClassDef):
            found.classes[node.name] = _namespace(node.body, root, package)
            found.classes[node.name].bases = tuple(name for base in node.bases if (name := _name_of(base)))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.imported |= _imported(node, root, package)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.members |= dict.fromkeys(name.id for target in targets for name in _names(target))
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body and of its ``if``, ``try`` and ``with`` blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for block in (node.body, getattr(node, "orelse", []), getattr(node, "finalbody", [])):
                yield from _statements(block)
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _names(target: ast.expr) -> list[ast.Name]:
    return [node for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _set_on_self(function: FunctionNode) -> set[str]:
    """Attributes that a method sets on its first parameter."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    owner = arguments[0].arg if arguments else ""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _name_of(node.value) == owner
    }


def _parameters(function: FunctionNode) -> Parameters:
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return tuple(names[1:] if names[:1] in (["self"], ["cls"]) else names)


def _name_of(node: ast.expr) -> str:
    """A name as written, dotted or not, without type parameters; empty for any other expression."""
    if isinstance(node, ast.Subscript):
        return _name_of(node.value)
    if isinstance(node, ast.Attribute):
        return f"{owner}.{node.attr}" if (owner := _name_of(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _imported(node: ast.Import | ast.ImportFrom, root: str, package: str) -> dict[str, str]:
    """The imports from this package, as in ``Namespace.imported``."""
    if isinstance(node, ast.Import):
        inside = [alias for alias in node.names if alias.name.partition(".")[0] == root]
        return {alias.asname or root: alias.name.partition(".")[2] if alias.asname else "" for alias in inside}
    module = node.module or ""
    if node.level:
        parts = package.split(".") if package else []
        module = ".".join([*parts[: len(parts) - node.level + 1], *([module] if module else [])])
    elif module.partition(".")[0] == root:
        module = module.partition(".")[2]
    else:
        return {}
    return {alias.asname or alias.name: f"{module}.{alias.name}".lstrip(".") for alias in node.names}
