"""Reads untrusted zip archives: checks that members are what they claim, and reads no more than that."""

from __future__ import annotations

import zipfile
from typing import IO

from ..errors import WeightsError

# Limits for expanding a compressed file: weights hardly compress, so more is a bomb; small files do no harm.
MAX_EXPANSION, SMALL = 10, 64 << 20

LOCAL_HEADER = 30  # bytes of a zip member's own header, without its name
FOLDER = 0x10  # in the attributes; some readers leave the memory of such a member uninitialised
AGAIN = "fetch or write it again"


def open_archive(file: IO[bytes], size: int) -> zipfile.ZipFile:
    """Opens an archive of this size after checking all its members.

    Raises:
        WeightsError: If members lie outside, overlap, share a name, or expand beyond reason.
    """
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise WeightsError(f"has several members with one name; {AGAIN}")
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise WeightsError(f"has a member {name!r}, which points out of the archive; do not trust this file")
    by_place = sorted(members, key=lambda member: member.header_offset)
    following = [*(member.header_offset for member in by_place[1:]), archive.start_dir]
    for member, end in zip(by_place, following, strict=True):
        if not 0 <= member.header_offset <= end - member.compress_size - LOCAL_HEADER:
            raise WeightsError(f"has members that overlap or lie outside it, for example {member.filename!r}; {AGAIN}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.external_attr & FOLDER:
            raise WeightsError(f"has a member {member.filename!r} that is neither plain nor deflated; {AGAIN}")
    check_expansion(sum(member.file_size for member in members), size)
    return archive


def check_expansion(total: int, size: int) -> None:
    """Refuses a file of this size that would expand to so many bytes.

    Raises:
        WeightsError: If that is more than weights ever expand.
    """
    if total > max(MAX_EXPANSION * size, SMALL):
        raise WeightsError(f"would expand from {size} to {total} bytes, which no weights do; do not trust this file")


def read_member(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytearray:
    """The bytes of a member, with the length and checksum that it claims.

    Args:
        archive: The archive.
        name: Name of the member.
        most: Largest number of bytes; no limit if None.

    Raises:
        WeightsError: If there is no such member, it is longer, or it is damaged.
    """
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise WeightsError(f"lacks its member {name[:200]!r}; {AGAIN}") from None
    if most is not None and member.file_size > most:
        raise WeightsError(f"has {member.file_size} bytes as {name!r}, but at most {most} are allowed; {AGAIN}")
    try:
        with archive.open(member) as held:
            content = bytearray(held.read(member.file_size))
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"is damaged: {error}; {AGAIN}, with checksums if they were left out by torch's set_crc32_options"
        ) from error
    if len(content) != member.file_size:
        raise WeightsError(f"has {len(content)} of the {member.file_size} bytes of {name!r}; {AGAIN}")
    return content
