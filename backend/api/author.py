"""Who requested a change: what the hub knows of the process, and what that process says of itself."""

from __future__ import annotations

import msgspec

from rltop.collectors.contract import wire


class Author(msgspec.Struct, frozen=True):
    """The process that requested a change, as the hub's socket identifies it.

    Attributes:
        uid, pid: of the process; None if the transport doesn't show them.
        claimed: the user and host that it named, if they are others than those of the process; unverified.
    """

    uid: wire.Count | None = None
    pid: wire.Count | None = None
    claimed: str = ""


def signature(who: str, host: str, author: Author | None = None) -> str:
    """Who requested a change, for people: the verified name first, a claimed one as such."""
    claim = f" (claims to be {author.claimed})" if author is not None and author.claimed else ""
    return f"{who}@{host}{claim}"
