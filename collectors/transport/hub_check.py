"""Whether a control message is from the hub of the run: a collector obeys no other process that has its sockets.

The hub proves itself by the hub key of the run directory, for the session of this process. A directory without that key
belongs to a hub of an earlier version, which proves nothing.
"""

from __future__ import annotations

from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import RunKeyError, hub_key
from rltop.collectors.contract.rundir import RunDir


class UnprovenError(ValueError):
    """A message is not from the hub of the run, or that can't be shown; the message says why.

    Attributes:
        message: what it would have been.
    """

    def __init__(self, reason: str, message: wire.ControlToCollector) -> None:
        super().__init__(reason)
        self.message = message


class HubCheck:
    """Checks the control messages to one process.

    Args:
        rundir: of the run.
        session: secret of this process, which it sends to its hub only.
    """

    def __init__(self, rundir: RunDir, session: str) -> None:
        self._key = hub_key(rundir)
        self._session = session
        self._hub = ""  # epoch of the hub that this process is registered with

    def obeyed(self, message: wire.ControlToCollector) -> wire.ControlToCollector:
        """The message to obey: what the hub has proven, or one that needs no proof.

        Raises:
            UnprovenError: it must not be obeyed.
            WireError: a proven message is malformed.
        """
        if isinstance(message, wire.Proven):
            return self._opened(message)
        if isinstance(message, wire.MUST_BE_PROVEN) and self._key.exists:
            raise UnprovenError("it has no proof of the hub key", message)
        return message

    def _opened(self, sealed: wire.Proven) -> wire.ControlToCollector:
        message = wire.decode_to_collector(sealed.message)
        if not self._key.exists:  # as without a proof: the hub's directory is another one, behind a relay
            return message
        try:
            proven = self._key.verifies(
                sealed.proof, *wire.proven_parts(self._session, sealed.hub_epoch, sealed.message)
            )
        except RunKeyError as error:
            raise UnprovenError(str(error), message) from error
        if not proven:
            raise UnprovenError("its proof is not of the present hub key, or for another process", message)
        if isinstance(message, wire.Welcome):
            self._hub = message.hub_epoch
        elif isinstance(message, wire.Command) and sealed.hub_epoch != self._hub:
            raise UnprovenError("its hub is not the one that this engine is registered with", message)
        return message
