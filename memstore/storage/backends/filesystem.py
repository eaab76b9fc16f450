"""Finds out if a file lies on a network file system, where SQLite's locks and shared memory cannot be trusted."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
"""Linux's list of the file systems that this process sees."""

NETWORK = frozenset(
    (
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "wekafs",
    )
)
"""Kinds of file systems that several machines can mount at once, by Linux's names for them."""


def network_filesystem(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the kind of network file system that holds the path; None if it is local, or if nothing tells.

    See https://sqlite.org/wal.html, "All processes using a database must be on the same host computer".
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        folder = path.resolve().parent
    except OSError:
        return None
    kinds: dict[Path, str] = {}
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        kinds[Path(_unescape(point))] = kind  # a later mount hides an earlier one at the same place
    nearest = next((parent for parent in (folder, *folder.parents) if parent in kinds), None)
    if nearest is None or kinds[nearest] not in NETWORK:
        return None
    return kinds[nearest]


def _unescape(point: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(octal, character)
    return point


def network_warning(where: str, kind: str) -> str:
    """Write the warning about a database on such a file system."""
    return (
        f"{where} lies on a network file system ({kind}): SQLite is safe there only while one machine uses the file. "
        "To share a memory between machines, open it as postgresql://user@host/database"
    )
