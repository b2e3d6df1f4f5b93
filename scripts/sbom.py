"""A software bill of materials of this environment, as CycloneDX 1.5 JSON: ``make sbom`` writes build/sbom.json.

Made from the metadata of installed distributions alone. Also the licences that they may have, which
``tests/project/test_supply_chain.py`` checks.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

OWN = "rltop"
EXTRAS = ("hub", "tui")
"""Extras that users install; the others are for development."""

PERMISSIVE = frozenset({
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense",
})  # fmt: skip
"""Licences of what rltop needs in a user's environment."""

FOR_DEVELOPMENT = PERMISSIVE | {"LGPL-2.1-only", "LGPL-3.0-only", "LicenseRef-Intel-EULA", "MPL-2.0"}
"""Licences of the test environment, which is not distributed."""

STATED = {
    "intel-cmplr-lib-ur": "LicenseRef-Intel-EULA", "intel-openmp": "LicenseRef-Intel-EULA",
    "oss-harmony": "Apache-2.0", "setuptools": "MIT", "supervisor": "BSD-3-Clause",
}  # fmt: skip
"""Read in the distributions' files, where the metadata has no licence or none with a usual name."""

_SPDX = {
    "apache software license": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0",
    "bsd license": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "isc license (iscl)": "ISC",
    "mit license": "MIT", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "the unlicense (unlicense)": "Unlicense",
    "python software foundation license": "PSF-2.0",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
}  # fmt: skip


@dataclass(frozen=True)
class Component:
    """One installed distribution.

    Attributes:
        licence: an SPDX expression; as the distribution writes it where that is none.
        requires: names of installed distributions that it requires, without extras.
    """

    name: str
    version: str
    licence: str
    requires: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"


def normal(name: str) -> str:
    """A name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(found: Distribution) -> str:
    """The licence: of the metadata's expression, else of its classifiers, else of its free text."""
    name, about = normal(found.metadata["Name"]), found.metadata
    if name in STATED:
        return STATED[name]
    if "License-Expression" in about:
        return about["License-Expression"]
    labels = [label.rpartition(" :: ")[2] for label in about.get_all("Classifier") or () if label.startswith("License")]
    known = dict.fromkeys(_SPDX[label.lower()] for label in labels if label.lower() in _SPDX)
    text = (about.get_all("License") or [""])[0].strip().partition("\n")[0]
    return " AND ".join(known) or _SPDX.get(text.lower(), text)


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Whether an SPDX expression can be met by these licences: all parts of an AND, one of each OR."""
    parts = re.sub(r"[()]", "", expression).split(" AND ")
    return all(any(one.strip() in allowed for one in part.split(" OR ")) for part in parts)


def components() -> dict[str, Component]:
    """All distributions of this environment by name."""
    found = {normal(one.metadata["Name"]): one for one in importlib.metadata.distributions()}
    return {
        name: Component(name, one.version, licence_of(one), tuple(n for n in _required(one, ()) if n in found))
        for name, one in sorted(found.items())
    }


def _required(found: Distribution, extras: tuple[str, ...]) -> list[str]:
    """Names of what a distribution requires here, with these extras."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in found.requires or ()]
    applies = [
        one for one in wanted if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))
    ]
    return sorted({normal(one.name) for one in applies})


def of_users(every: dict[str, Component]) -> set[str]:
    """Names of what an installation of rltop with ``EXTRAS`` brings."""
    reached: set[str] = set()
    waiting = _required(importlib.metadata.distribution(OWN), EXTRAS)
    while waiting:
        name = waiting.pop()
        if name in every and name not in reached:
            reached.add(name)
            waiting += every[name].requires
    return reached


def bill(every: dict[str, Component]) -> dict[str, Any]:
    """The bill of materials. ``scope``: required by an installation of rltop, or optional."""
    users, own = of_users(every), every[OWN]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": _entry(own, "application", "required")},
        "components": [
            _entry(one, "library", "required" if one.name in users else "optional")
            for one in every.values()
            if one is not own
        ],
        "dependencies": [
            {"ref": one.purl, "dependsOn": [every[name].purl for name in one.requires]} for one in every.values()
        ],
    }


def _entry(one: Component, kind: str, scope: str) -> dict[str, Any]:
    named = [{"expression": one.licence}] if one.licence else []
    return {
        "type": kind, "bom-ref": one.purl, "name": one.name, "version": one.version, "purl": one.purl, "scope": scope,
        "licenses": named,
    }  # fmt: skip


def main() -> None:
    """Write the bill to the path in the first argument."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    every = components()
    path.write_text(json.dumps(bill(every), indent=1) + "\n")
    print(f"{path}: {len(every)} components, {len(of_users(every))} of them required by rltop")


if __name__ == "__main__":
    main()
