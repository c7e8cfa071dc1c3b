"""A plot of rates over lengths, both on logarithmic axes, as SVG."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN, LEGEND = 760, 420, 60, 150
COLOURS = ("#0b6bcb", "#9cc4ee", "#c2410c", "#f0b48f")


@dataclass(frozen=True)
class Line:
    """A name and its points: tokens, and tokens a second; all above 0."""

    name: str
    points: Sequence[tuple[float, float]]


def plot(title: str, lines: Sequence[Line]) -> str:
    """Draw lines that have at least one point among them."""
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError("nothing to draw")
    across = _Axis([x for x, _ in points], 2, MARGIN, WIDTH - LEGEND)
    up = _Axis([y for _, y in points], 10, HEIGHT - MARGIN, MARGIN)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{MARGIN}" y="24" font-size="15">{escape(title)}: tokens a second</text>',
            *_grid(across, up),
            *(_drawn(line, COLOURS[i % len(COLOURS)], across, up) for i, line in enumerate(lines)),
            *(_named(line, COLOURS[i % len(COLOURS)], i) for i, line in enumerate(lines)),
            "</svg>\n",
        ]
    )


class _Axis:
    """Powers of a base, laid out between two coordinates."""

    def __init__(self, values: Sequence[float], base: int, start: float, end: float) -> None:
        self._base, self._start, self._end = base, start, end
        self._first = math.floor(self._log(min(values)) + 1e-9)
        self._last = max(self._first + 1, math.ceil(self._log(max(values)) - 1e-9))

    def __call__(self, value: float) -> float:
        share = (self._log(value) - self._first) / (self._last - self._first)
        return self._start + share * (self._end - self._start)

    def _log(self, value: float) -> float:
        return math.log(value, self._base)

    def ticks(self) -> Iterator[float]:
        """The powers."""
        return (self._base**power for power in range(self._first, self._last + 1))


def _grid(across: _Axis, up: _Axis) -> Iterator[str]:
    for tick in across.ticks():
        x = across(tick)
        yield f'<path d="M{x:.1f} {MARGIN}V{HEIGHT - MARGIN}" stroke="#e5e5e5"/>'
        below = HEIGHT - MARGIN + 18
        yield f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{tick:,.0f}</text>'
    for tick in up.ticks():
        y = up(tick)
        yield f'<path d="M{MARGIN} {y:.1f}H{WIDTH - LEGEND}" stroke="#e5e5e5"/>'
        yield f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.4g}</text>'
    middle = (MARGIN + WIDTH - LEGEND) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">tokens of the prompt</text>'


def _drawn(line: Line, colour: str, across: _Axis, up: _Axis) -> str:
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
    dots = "".join(
        f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"><title>{escape(line.name)}: {x:,.0f} '
        f"tokens, {y:,.1f} tokens a second</title></circle>"
        for x, y in line.points
    )
    return (
        f'<g fill="{colour}"><polyline points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="2"/>{dots}</g>'
    )


def _named(line: Line, colour: str, number: int) -> str:
    x, y = WIDTH - LEGEND + 14, MARGIN + 20 * number
    return (
        f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{x + 16}" y="{y}">{escape(line.name)}</text>'
    )
