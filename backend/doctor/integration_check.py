"""Checks an installed training framework, by its source, against the hooks of its adapter. Imports no framework."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rltop.backend.doctor.package_source import PackageSource, Parameters, installed
from rltop.integrations.hooks import Hook
from rltop.integrations.support.catalogue import PROOFS, Framework


@dataclass(frozen=True)
class HookCheck:
    """Whether a hook fits.

    Attributes:
        hook: what the adapter expects.
        parameters: of the function in the source; empty if it is missing.
        problem: why the hook does not fit; empty if it does.
    """

    hook: Hook
    parameters: Parameters
    problem: str


@dataclass(frozen=True)
class Check:
    """One framework in this environment.

    Attributes:
        version: of the installed distribution; empty if not known.
        found: where the source is; empty if there is none.
        hooks: in the order of the adapter; empty without a source.
    """

    framework: Framework
    version: str
    found: str
    hooks: tuple[HookCheck, ...]

    @property
    def fits(self) -> bool | None:
        """Whether every hook fits; None if there is no source to read."""
        return None if not self.found else not any(check.problem for check in self.hooks)


def check(framework: Framework, folder: Path | None = None) -> Check:
    """Check the installed framework, or the source in ``folder``: a checkout, or the package's own folder."""
    source = _in(folder, framework.package) if folder else installed(framework.package)
    if source is None:
        return Check(framework, "", "", ())
    hooks = tuple(check_hook(source, rooted(hook, framework)) for hook in framework.hooks)
    return Check(framework, "" if folder else _version(framework), str(source.root), hooks)


def rooted(hook: Hook, framework: Framework) -> Hook:
    """The hook with the class in which an object's hook is looked up."""
    return replace(hook, owner=framework.roots.get(hook.owner[1:], hook.owner)) if hook.owner[0] == "." else hook


def check_hook(source: PackageSource, hook: Hook) -> HookCheck:
    """Compare a hook with the source."""
    module, _, owner = hook.owner.partition(":")
    inside = module.partition(".")[2]
    members = source.members(inside, owner) if owner else source.functions(inside)
    if members is None:
        return HookCheck(hook, (), f"{hook.owner.replace(':', '.')} is missing")
    parameters = members.get(hook.function)
    if parameters is None:
        return HookCheck(hook, (), f"{hook.function} is {'no function' if hook.function in members else 'missing'}")
    absent = [name for name in hook.parameters if name not in parameters]
    problem = f"{hook.function} takes {', '.join(parameters)}, without {', '.join(absent)}" if absent else ""
    return HookCheck(hook, parameters, problem)


def as_json(checked: Check) -> dict[str, Any]:
    """One framework as plain values."""
    framework = checked.framework
    return {
        "framework": framework.name,
        "installed": checked.version or None,
        "source": checked.found or None,
        "place": framework.place,
        "lines": list(framework.lines),
        "fits": checked.fits,
        "hooks": [
            {"function": name_of(one.hook), "provides": one.hook.provides, "verified": one.hook.verified,
             "problem": one.problem or None}
            for one in checked.hooks
        ],
        "proof": framework.proof,
        "proven": framework.proven,
        "lost": framework.lost,
    }  # fmt: skip


def as_text(checked: Check) -> Iterator[str]:
    """The lines to add, and what they give in this environment."""
    framework = checked.framework
    yield f"{framework.name}: add {framework.place}"
    yield from (f"    {line}" for line in framework.lines)
    yield from _found(checked)
    yield f"  proven        {framework.proof}: {PROOFS[framework.proof]}"
    yield f"                {framework.proven}"
    yield f"  not seen      {framework.lost}"


def _found(checked: Check) -> Iterator[str]:
    if not checked.found:
        where = "" if checked.framework.distribution else "; --source FOLDER checks a checkout"
        yield f"  installed     not in this environment{where}"
        return
    yield f"  installed     {checked.version or 'version unknown'}, {checked.found}"
    for one in checked.hooks:
        state = f"does not fit: {one.problem}; lost: {one.hook.provides}" if one.problem else "fits"
        yield f"  hook          {name_of(one.hook)} {state}"


def name_of(hook: Hook) -> str:
    """The function, with its module and class."""
    return f"{hook.owner.replace(':', '.')}.{hook.function}"


def _in(folder: Path, package: str) -> PackageSource | None:
    """The package in a folder, at its top, in ``src``, or the folder itself."""
    places = [folder / package, folder / "src" / package, *([folder] if folder.name == package else [])]
    return next((PackageSource(place) for place in places if (place / "__init__.py").is_file() or _holds(place)), None)


def _holds(place: Path) -> bool:
    """A package without ``__init__.py`` has modules or packages in it."""
    return place.is_dir() and any(place.glob("*/*.py"))


def _version(framework: Framework) -> str:
    try:
        return importlib.metadata.version(framework.distribution or framework.package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return ""
