"""The table of vLLM's names is complete: every attribute that the collector reads of vLLM's objects is in it."""

from __future__ import annotations

import ast
import atexit
import builtins
import collections
import contextlib
import functools
import importlib
import inspect
import itertools
import logging
import math
import os
import platform
import queue
import re
import socket
import struct
import sys
import threading
import time
import types
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rltop.collectors.vllm.vllm_names import ABSENT, ALTERNATIVE, CAPABILITIES, GUARDS, NEWER, OBJECTS

ROOT = Path(__file__).parents[3] / "collectors"

PYTHON = (
    str, bytes, bytearray, list, dict, set, tuple, int, float, type, object, memoryview, types.FunctionType,
    types.MethodType, itertools.chain, queue.Queue, socket.socket, collections.OrderedDict, collections.defaultdict,
    collections.deque, Path, logging.Logger, threading.Event, uuid.UUID, np.ndarray, Exception, atexit,
    builtins, collections, contextlib, functools, importlib,
    inspect, itertools, logging, math, os, os.path, platform, re, socket, struct, sys, threading, time,
    uuid, weakref, np,
)  # fmt: skip

OTHERS = {
    "torch": (
        "Tensor", "as_strided", "copy_", "cuda", "data_ptr", "element_size", "functional", "get_device_name",
        "get_parameter", "inference_mode", "is_cuda", "is_meta", "mm", "mem_get_info", "memory_allocated",
        "memory_reserved", "named_buffers", "named_children", "named_modules", "named_parameters", "nn", "numel",
        "storage_offset", "stride", "t", "untyped_storage",
    ),
    "msgspec": ("__struct_defaults__", "__struct_fields__"),
    "named tuples": ("_replace",),
    "classes and functions of vLLM, looked up by a check of their own": (
        "EngineCoreRequest", "EngineCoreRequestType", "Executor", "InprocClient", "RequestStatus", "SamplingParams",
        "WorkerBase", "get_pp_group",
    ),
    "attributes of single models": ("language_model", "lm_head", "logits_processor", "base_layer", "cpu_linear",
                                    "packed_modules_mapping"),
    "the collector's own, on vLLM's objects": ("__wrapped__", "rltop_fused", "rltop_held", "rltop_head",
                                                "rltop_head_dtype", "rltop_idle", "rltop_is_off", "rltop_original",
                                                "rltop_reading", "rltop_run_ahead", "rltop_wrapper"),
}  # fmt: skip


def trees(root: Path) -> Iterator[ast.AST]:
    for path in sorted(root.rglob("*.py")):
        if path.name != "vllm_names.py":
            yield from ast.walk(ast.parse(path.read_text()))


def defined() -> set[str]:
    """Names that the collectors define: functions, classes, fields, attributes, module variables."""
    found = set()
    for node in trees(ROOT):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target)):
                if isinstance(part, ast.Name):
                    found.add(part.id)
                elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                    found.add(part.attr)
    return found


def read() -> set[str]:
    """Attributes that the engine collector reads, also by ``getattr`` and ``hasattr``."""
    found = set()
    for node in trees(ROOT / "vllm"):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            found |= {str(arg.value) for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
    return found


def in_table() -> set[str]:
    needs = [*GUARDS, *NEWER, *(need for capability in CAPABILITIES for need in capability.needs)]
    names = [name.removeprefix(ABSENT) for need in needs for name in need.split(ALTERNATIVE)]
    assert {name.partition(".")[0] for name in names} == set(OBJECTS)
    return {name.partition(".")[2] for name in names}


def test_every_name_that_the_collector_reads_of_vllm_is_in_the_table() -> None:
    known = {name for one in PYTHON for name in dir(one)} | {name for names in OTHERS.values() for name in names}
    assert read() - defined() - known - in_table() == set()


def test_every_name_in_the_table_is_used() -> None:
    words = {
        word
        for node in trees(ROOT / "vllm")
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for word in re.findall(r"\w+", node.value)
    }
    composed = {f"{kind}_parallel_size" for kind in ("data", "tensor", "pipeline")}
    assert in_table() - read() - words - composed == set()


def test_no_capability_is_named_twice() -> None:
    names = [capability.name for capability in CAPABILITIES]
    assert len(set(names)) == len(names)
