"""The table of frameworks agrees with the signatures that were read, and with the frameworks that are installed."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

from rltop.backend.doctor import integration_check
from rltop.integrations.support.catalogue import FRAMEWORKS, PROOFS, Framework

SIGNATURES = json.loads((Path(__file__).parents[1] / "data" / "framework_signatures.json").read_text())
HOOKED = [framework for framework in FRAMEWORKS if framework.hooks]


@pytest.mark.parametrize("framework", HOOKED, ids=lambda framework: framework.name)
def test_every_hook_fits_the_signatures_that_were_read(framework: Framework) -> None:
    read = SIGNATURES[framework.name]
    assert read["version"] in framework.proven
    for hook in framework.hooks:
        rooted = integration_check.rooted(hook, framework)
        parameters = read["functions"][integration_check.name_of(rooted)]
        assert set(hook.parameters) <= set(parameters), hook
        assert read["version"] in hook.verified


@pytest.mark.parametrize("framework", HOOKED, ids=lambda framework: framework.name)
def test_every_hook_fits_the_installed_version(framework: Framework) -> None:
    checked = integration_check.check(framework)
    if not checked.found:
        pytest.skip(f"{framework.name} is not installed")
    assert [one for one in checked.hooks if one.problem] == []


def test_every_framework_has_lines_a_proof_and_an_adapter_that_imports_no_framework() -> None:
    for framework in FRAMEWORKS:
        assert framework.lines and framework.place and framework.lost and framework.proof in PROOFS
        (named,) = {word.split(".")[2] for word in _words(framework) if word.startswith("rltop.integrations.")}
        module = importlib.import_module(f"rltop.integrations.{named}")
        assert inspect.getdoc(module)
        assert any(callable(getattr(module, name, None)) for name in ("install", "watch", "record"))


def _words(framework: Framework) -> list[str]:
    text = " ".join(framework.lines).replace('"', " ").replace("=", " ").replace("(", " ").replace(";", " ")
    return [word for word in text.split() if word.startswith("rltop.integrations.")]
