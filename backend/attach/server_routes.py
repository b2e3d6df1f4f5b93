"""The HTTP routes of a vLLM server that a run attached by URL reads and calls. Blocking; for a process of its own."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
"""A server under load answers late; one that is gone refuses at once."""
MAX_BODY_BYTES = 16 << 20
DEV = "start the server with VLLM_SERVER_DEV_MODE=1, which enables vLLM's development routes"


class ServerError(RuntimeError):
    """The server did not answer, or refused; the message says why."""


class Routes:
    """A server by its address, such as ``http://host:8000``.

    Raises:
        ServerError: it is not such an address.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            self.port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise ServerError(f"{url}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url}: expected an address such as http://HOST:8000")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ServerError(f"{url}: expected an address without user, query and fragment")
        self.host = parts.hostname
        self.url = (
            f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1').removesuffix('/metrics')}"
        )

    def get(self, path: str, timeout_s: float = TIMEOUT_S) -> str:
        """The body of a GET request; ``timeout_s`` bounds each wait for the server.

        Raises:
            ServerError: no answer, or no success.
        """
        return self._send(path, timeout_s=timeout_s)

    def post(self, path: str) -> Any:
        """The answer to a POST request without a body, from JSON; None if it is empty. Raises as ``get``."""
        body = self._send(path, b"")
        return _json(body) if body else None

    def ask(self, path: str) -> dict[str, Any]:
        """The JSON object at ``path``; empty if the server has none: an optional route."""
        try:
            found = _json(self.get(path))
        except ServerError:
            return {}
        return found if isinstance(found, dict) else {}

    def paths(self) -> frozenset[str]:
        """The paths that the server offers; empty if it does not list them."""
        paths = self.ask("/openapi.json").get("paths")
        return frozenset(paths) if isinstance(paths, dict) else frozenset()

    def _send(self, path: str, data: bytes | None = None, timeout_s: float = TIMEOUT_S) -> str:
        request = urllib.request.Request(self.url + path, data)  # noqa: S310 - http or https: see __init__
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                return str(answer.read(MAX_BODY_BYTES).decode(errors="replace"))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace")
            raise ServerError(f"{path}: status {error.code} {said}".strip()) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ServerError(f"{self.url} does not answer: {reason}") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ServerError("the answer is not JSON") from None
