"""Zip archives from whom one may not know: members that are what they say, and are read no further than that."""

from __future__ import annotations

import zipfile
from typing import IO

from ..errors import WeightsError

# What a compressed file may expand to: weights hardly compress, so that more is a bomb; small files do no harm.
MAX_EXPANSION, SMALL = 10, 64 << 20

LOCAL_HEADER = 30  # bytes of a zip member's own header, without its name
FOLDER = 0x10  # in the attributes; some readers leave the bytes of such a member as they find the memory
AGAIN = "fetch or write it again"


def open_archive(file: IO[bytes], size: int) -> zipfile.ZipFile:
    """Opens an archive of this size after a look at all of its members.

    Raises:
        WeightsError: If members lie outside, upon or over each other, are of one name, or expand beyond reason.
    """
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise WeightsError(f"has several members of one name; {AGAIN}")
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise WeightsError(f"has a member {name!r}, which points out of the archive; do not trust this file")
    by_place = sorted(members, key=lambda member: member.header_offset)
    following = [*(member.header_offset for member in by_place[1:]), archive.start_dir]
    for member, end in zip(by_place, following, strict=True):
        if not 0 <= member.header_offset <= end - member.compress_size - LOCAL_HEADER:
            raise WeightsError(f"has members that overlap or lie outside it, as {member.filename!r}; {AGAIN}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.external_attr & FOLDER:
            raise WeightsError(f"has a member {member.filename!r} that is neither plain nor deflated; {AGAIN}")
    check_expansion(sum(member.file_size for member in members), size)
    return archive


def check_expansion(total: int, size: int) -> None:
    """Refuses what would take so many bytes of memory out of a file of this size.

    Raises:
        WeightsError: If that is more than weights ever do.
    """
    if total > max(MAX_EXPANSION * size, SMALL):
        raise WeightsError(f"would expand from {size} to {total} bytes, which no weights do; do not trust this file")


def read_member(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytearray:
    """The bytes of a member, which must be as many as it says, and of the checksum that it says.

    Args:
        archive: Where it is.
        name: Of the member.
        most: How many bytes it may have; any if None.

    Raises:
        WeightsError: If there is none, it is longer, or its bytes are not those that were written.
    """
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise WeightsError(f"lacks its member {name[:200]!r}; {AGAIN}") from None
    if most is not None and member.file_size > most:
        raise WeightsError(f"has {member.file_size} bytes as {name!r}, where at most {most} can be; {AGAIN}")
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
