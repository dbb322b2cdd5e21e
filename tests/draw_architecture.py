"""Draws the rooms of the package and what they import, from the code: `python tests/draw_architecture.py`.

The rooms stand one below the other, as on the page. To their right, each room that is imported has a lane from those
that import it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from test_architecture import FLOORS, IMPORTS, PAGE, ROOT, room_of

PICTURE = ROOT / "docs" / "images" / "architecture.svg"
Graph = dict[str, set[str]]

ROW, BOX, LANE, GAP = 28, 124, 22, 22  # pixels: a row, the width of a box, the distance of lanes, the first of them
# Readable on white and on black alike: dark text on light boxes, and lines of a middle grey.
FILLS = ("#e8e4da", "#cfe3f7", "#d5edd6", "#f8e6b8", "#f6d5d8")
LINE, TEXT, CAPTION = "#8a8f98", "#1b1f24", "#808690"


def groups() -> dict[str, str]:
    """Room -> the heading under which the page describes it."""
    return {
        room: heading
        for heading, table in re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
        for room in re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)
    }


def imported_rooms() -> Graph:
    """Room -> the rooms that it imports."""
    graph: Graph = {room: set() for floor in FLOORS for room in floor}
    for name, others in IMPORTS.items():
        if room_of(name) in graph:
            graph[room_of(name)] |= {room_of(other) for other in others} & graph.keys() - {room_of(name)}
    return graph


def reachable(graph: Graph, rooms: Iterable[str]) -> set[str]:
    """What these rooms import, and what that imports, and so on."""
    found: set[str] = set()
    for room in rooms:
        found |= graph[room] | reachable(graph, graph[room])
    return found


def reduced(graph: Graph) -> Graph:
    """The graph without what follows from the rest of it, and without what every room may use."""
    shown = {room: {r for r in of if not is_for_all(r)} for room, of in graph.items() if not is_for_all(room)}
    return {room: of - reachable(shown, of) for room, of in shown.items()}


def is_for_all(room: str) -> bool:
    return room == "errors" or room.startswith("_")


def lanes(importers: Graph, order: list[str]) -> dict[str, int]:
    """Room that is imported -> the lane of its importers, from the left; lines in one lane do not touch."""
    last: list[int] = []  # of each lane, the place of the lowest room so far
    lane_of: dict[str, int] = {}
    for room in sorted(importers, key=order.index):
        free = (lane for lane, lowest in enumerate(last) if lowest < order.index(room))
        lane_of[room] = lane = next(free, len(last))
        last[lane : lane + 1] = [max(map(order.index, importers[room]))]
    return lane_of


def draw(graph: Graph, heading_of: dict[str, str]) -> str:
    """The picture, as SVG: imports leave a box in its lower half and enter one in its upper half."""
    order = [room for room in heading_of if room in graph]
    headings = list(dict.fromkeys(heading_of[room] for room in order))
    middle = {room: (place + headings.index(heading_of[room]) + 1.5) * ROW for place, room in enumerate(order)}
    importers = {room: {r for r in graph if room in graph[r]} for room in order}
    lane_of = lanes({room: by for room, by in importers.items() if by}, order)
    parts = [
        f'<text x="2" y="{middle[room] - ROW + 5}" class="heading">{heading}</text>'
        for heading in headings
        for room in [next(room for room in order if heading_of[room] == heading)]
    ]
    for room in order:
        fill = FILLS[headings.index(heading_of[room])]
        parts.append(f'<rect x="2" y="{middle[room] - 12}" width="{BOX}" height="24" rx="4" fill="{fill}"/>')
        parts.append(f'<text x="10" y="{middle[room] + 4.5}" class="room">{room}</text>')
    for room, lane in lane_of.items():
        x, top, rows = BOX + GAP + lane * LANE, middle[room] - 5, sorted(middle[r] + 6 for r in importers[room])
        parts.append(f'<path d="M{x} {rows[-1]}V{top}H{BOX + 9}"/><path class="solid" d="M{BOX + 3} {top}l8 -4v8z"/>')
        parts += [
            f'<path d="M{BOX + 2} {row}H{x}"/><circle cx="{x}" cy="{row}" r="3.2" class="solid"/>' for row in rows
        ]
    width, height = BOX + GAP + (max(lane_of.values()) + 1) * LANE, max(middle.values()) + ROW / 2
    style = f"""
text {{ font: 13px system-ui, sans-serif }} .heading {{ fill: {CAPTION} }} .room {{ fill: {TEXT} }}
path {{ stroke: {LINE}; stroke-width: 1.4; fill: none }} .solid {{ fill: {LINE}; stroke: none }}
"""
    size = f'width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{style}</style>", *parts, "</svg>", ""]
    )


def picture() -> str:
    return draw(reduced(imported_rooms()), groups())


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
