"""States the version of new weights in the engines of frameworks whose update calls carry it.

A vLLM plugin: it runs in every worker, imports no framework, and observes a framework's own update method once that is
imported. Frameworks that state no version to their engines need none of this: the engine collector counts updates.
"""

from __future__ import annotations

import json

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.on_import import when_imported
from rltop.integrations.hooks import Call, Hook, Hooks, Observer

_WHAT = "the version that its engines sample with; else they count updates"

PIPELINE_RL = Hook("weights of PipelineRL", "pipelinerl.vllm1:WorkerExtension", "receive_weight_update",
                   ("request_json",), _WHAT, "2026-06-19")  # fmt: skip
PRIME_RL = tuple(
    Hook(f"weights of prime-rl by {way}", f"prime_rl.inference.vllm.worker.{way}:{name}", "update_weights_from_path",
         (argument,), _WHAT, "0.8.0 (2026-08-21)")
    for way, name, argument in (
        ("filesystem", "FileSystemWeightUpdateWorker", "weight_path"),
        ("nccl", "NCCLWeightUpdateWorker", "weight_dir"),
    )
)  # fmt: skip

_guard = ErrorBoundary()
_hooks = Hooks(_guard)
_registered: set[str] = set()


def register() -> None:
    """Entry point of ``vllm.general_plugins``. Idempotent; never raises."""
    _observe(PIPELINE_RL, _after_request)
    for hook in PRIME_RL:
        _observe(hook, _after_path)


def _observe(hook: Hook, after: Observer) -> None:
    if hook.owner not in _registered:
        _registered.add(hook.owner)
        when_imported(hook.owner.partition(":")[0], _guard, lambda: _hooks.add(hook, after=after))


def _after_request(call: Call) -> None:
    _state(json.loads(call["request_json"]).get("version"))


def _after_path(call: Call) -> None:
    path = call.arguments.get("weight_path", call.arguments.get("weight_dir"))
    if path is not None:
        _state(path)  # ends in the step


def _state(version: object) -> None:
    from rltop.collectors import weights_updated

    if version is not None:
        weights_updated(version)
