"""Members of classes as read from source, compared with Python's own view of the imported classes."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltop.backend.doctor.package_source import PackageSource, installed


def written_parameters(method: object) -> tuple[str, ...] | None:
    """Parameters of a method without ``self`` or ``cls``; None for anything but a plain Python function."""
    function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        return None
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, one in inspect.signature(function).parameters.items() if one.kind not in kinds]
    return tuple(names[1:] if names[:1] in (["self"], ["cls"]) else names)


def classes_of(package: str, source: PackageSource) -> Iterator[tuple[str, type]]:
    """Every class that a class statement of the package makes, with the name of its module in the package."""
    for info in pkgutil.walk_packages([str(source.root)], f"{package}."):
        if not re.search(r"__main__|\._bootstrap|\.test\b", info.name):
            for name, owner in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
                module = info.name.partition(".")[2]
                if owner.__module__ == info.name and owner.__qualname__ == name:
                    with contextlib.suppress(OSError):
                        if re.search(rf"^class {name}\b", inspect.getsource(owner), re.MULTILINE):
                            yield module, owner


def methods_of(package: str, owner: type) -> dict[str, tuple[str, ...]]:
    """Methods of a class, as defined in it or in the first of its base classes that are in the package."""
    found: dict[str, tuple[str, ...] | None] = {}
    for base in itertools.takewhile(lambda base: base.__module__.startswith(f"{package}."), owner.__mro__):
        for name, value in vars(base).items():
            own = getattr(value, "__qualname__", "") == f"{base.__qualname__}.{name}"
            found.setdefault(name, written_parameters(value) if own else None)
    return {name: parameters for name, parameters in found.items() if parameters is not None}


@pytest.mark.parametrize("package", ["concurrent", "email", "http", "json", "logging", "unittest", "xml"])
def test_methods_and_parameters_are_those_of_the_imported_classes(package: str) -> None:
    source = installed(package)
    assert source is not None
    seen = 0
    for module, owner in classes_of(package, source):
        members = source.members(module, owner.__name__)
        assert members is not None, owner
        for method, parameters in methods_of(package, owner).items():
            assert members.get(method) == parameters, (owner, method)
            seen += 1
    assert seen > 5


def write(root: Path, **modules: str) -> PackageSource:
    for name, text in modules.items():
        path = root / "pack" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return PackageSource(root / "pack")


def test_attributes_set_by_methods_and_inherited_ones_are_members(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        base="class Base:\n    def f(this):\n        this.one, (this.two, other.no) = x\n        this.three: int = 3\n",
        sub__user="from pack import base as b\nfrom ..base import Base as B\nclass User(B[int]):\n    field: str\n",
        sub____init__="",
    )
    members = source.members("sub.user", "User")
    assert members is not None
    assert {"one", "two", "three", "field", "f"} <= members.keys()
    assert "no" not in members


def test_a_class_is_found_through_re_exports_and_conditional_definitions(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        a="if x:\n    try:\n        class A:\n            def f(self, x, *, y): ...\n    except X:\n        pass\n",
        b="from pack.a import A as Again\n",
        c="from pack.b import Again\n",
    )
    assert source.members("c", "Again") == {"f": ("x", "y")}


@pytest.mark.parametrize("text", ["class A(", "def f(:\n", "\0", "class B: pass"])
def test_a_module_that_can_not_be_read_or_lacks_the_class_has_no_members(text: str, tmp_path: Path) -> None:
    assert write(tmp_path, m=text).members("m", "A") is None
    assert write(tmp_path, m=text).members("absent", "A") is None


def test_classes_that_import_or_inherit_in_a_circle_end(tmp_path: Path) -> None:
    source = write(
        tmp_path, a="from pack.b import X\nclass Y(Z): p = 1\nclass Z(Y): q = 1\n", b="from pack.a import X\n"
    )
    assert source.members("a", "X") is None
    assert source.members("a", "Y") == {"p": None, "q": None}


def test_a_package_that_is_not_installed_has_no_source() -> None:
    assert installed("rltop_no_such_package") is None
