"""Checks an installed vLLM against the names that the collector uses, by its source: vLLM is not imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rltop.backend.doctor.findings import Finding, Level
from rltop.backend.doctor.package_source import PackageSource
from rltop.collectors.vllm.patches import PATCH_POINTS
from rltop.collectors.vllm.vllm_names import (
    ABSENT,
    ALTERNATIVE,
    CAPABILITIES,
    GUARDS,
    NEWER,
    OBJECTS,
    PARAMETERS,
    Capability,
    name_of,
)

SECTION = "vLLM in this environment"


@dataclass(frozen=True)
class CapabilityCheck:
    """A capability on one vLLM; ``missing``: why it is not available, one reason per name; empty if it is."""

    capability: Capability
    missing: tuple[str, ...]


def check_capabilities(source: PackageSource) -> list[CapabilityCheck]:
    """Look up every name of every capability."""
    return [
        CapabilityCheck(one, tuple(fault for need in one.needs if (fault := why_missing(source, need))))
        for one in CAPABILITIES
    ]


def check_patch_points(source: PackageSource) -> dict[str, str]:
    """By patch point: why it can't be used; empty if it can. Without those of newer versions."""
    points = (point for point in PATCH_POINTS if name_of(point) not in NEWER)
    return {point.name: why_missing(source, name_of(point)) for point in points}


def absent_guards(source: PackageSource) -> dict[str, str]:
    """The names in ``GUARDS`` that this vLLM does not have, with the case that each shows."""
    return {name: case for name, case in GUARDS.items() if why_missing(source, name)}


def why_missing(source: PackageSource, need: str) -> str:
    """Why this vLLM does not have what is needed (see ``vllm_names``); empty if it has."""
    faults = [_fault(source, name) for name in need.split(ALTERNATIVE)]
    return "" if "" in faults else " and ".join(faults)


def _fault(source: PackageSource, name: str) -> str:
    if name.startswith(ABSENT):
        present = name.removeprefix(ABSENT)
        return "" if _fault(source, present) else f"it has {_written(present)}"
    key, _, attribute = name.partition(".")
    module, _, owner = OBJECTS[key].partition(":")
    members = source.members(module, owner)
    if members is None:
        return f"no class {owner} in vllm.{module}"
    if attribute not in members:
        return f"no {owner}.{attribute}"
    return _parameter_fault(_written(name), PARAMETERS.get(name, ()), members[attribute])


def _parameter_fault(method: str, wanted: tuple[str, ...], found: tuple[str, ...] | None) -> str:
    if not wanted or (found is not None and found[: len(wanted)] == wanted):
        return ""
    return f"{method} takes ({', '.join(found or ())}), not ({', '.join(wanted)})"


def _written(name: str) -> str:
    key, _, attribute = name.partition(".")
    return f"{OBJECTS[key].partition(':')[2]}.{attribute}"


def version_of(source: PackageSource) -> str:
    """The version that a vLLM states in its source; ``unknown`` if it states none."""
    path = source.root / "_version.py"
    found = re.search(r"\bversion = ['\"]([^'\"]+)", path.read_text()) if path.is_file() else None
    return found[1] if found else "unknown"


def findings(source: PackageSource | None, *, every: bool = False) -> list[Finding]:
    """What the vLLM of this environment lacks; with ``every`` also what it has."""
    if source is None:
        return [Finding(SECTION, "note", "none", "run `rltop doctor --vllm` in the environment of the engines")]
    checks = check_capabilities(source)
    available = sum(not check.missing for check in checks)
    head = f"vLLM {version_of(source)}: {available} of {len(checks)} capabilities available, read from its source"
    return [Finding(SECTION, "ok", head), *(_finding(check) for check in checks if every or check.missing)]


def _finding(check: CapabilityCheck) -> Finding:
    name = check.capability.name
    if not check.missing:
        return Finding(SECTION, "ok", name)
    level: Level = "problem" if check.capability.essential else "note"
    return Finding(SECTION, level, f"{name}: {check.capability.lost} ({'; '.join(check.missing)})")


def as_json(source: PackageSource) -> dict[str, Any]:
    """The whole check as plain values."""
    return {
        "version": version_of(source),
        "source": str(source.root),
        "capabilities": [
            {
                "name": c.capability.name,
                "available": not c.missing,
                "missing": list(c.missing),
                "lost": c.capability.lost,
            }
            for c in check_capabilities(source)
        ],
        "patch_points": check_patch_points(source),
        "absent_guards": absent_guards(source),
    }
