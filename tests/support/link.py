"""A link between engine and hub that a test can cut while both live: sockets in between forward bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from rltop.collectors.contract.rundir import RunDir

ENDPOINTS = ("ingest", "control")
CHUNK = 1 << 16


class Link:
    """Listens in ``near``, where an engine looks for its hub, and passes everything to the hub in ``far`` and back."""

    def __init__(self, near: RunDir, far: RunDir) -> None:
        self._near, self._far = near.path, far.path
        self._servers: list[asyncio.Server] = []
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self._listen())

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Meanwhile no connection stands, what was on its way in one is lost, and none can be made."""
        self._run(self._break())
        try:
            yield
        finally:
            self._run(self._listen())

    def close(self) -> None:
        self._run(self._break())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        for name in ENDPOINTS:
            far = self._far / f"{name}.sock"

            async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: Path = far) -> None:
                await self._join(reader, writer, far)

            self._servers.append(await asyncio.start_unix_server(met, self._near / f"{name}.sock"))

    async def _break(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []
        for name in ENDPOINTS:
            (self._near / f"{name}.sock").unlink(missing_ok=True)
        for end in self._ends:
            end.transport.abort()
        while self._ends:
            await asyncio.sleep(0.01)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: Path) -> None:
        """Until one side ends the connection."""
        self._ends.add(writer)
        try:
            hub_reader, hub_writer = await asyncio.open_unix_connection(far)
        except OSError:  # no hub there
            self._ends.remove(writer)
            writer.close()
            return
        self._ends.add(hub_writer)
        if not self._servers:  # cut meanwhile
            writer.transport.abort()
            hub_writer.transport.abort()
        await asyncio.gather(_pass(reader, hub_writer), _pass(hub_reader, writer))
        self._ends -= {writer, hub_writer}


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()
