"""Write plots of row M as SVG: logarithmic axes, one line for each series, every point labelled."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 46, 50
COLOURS = ("#1f5fa8", "#b5441f", "#3c7d3c", "#7a4fa0")


def decades(values):
    """Return the powers of ten around the values as exponents (low, high), at least 1 apart.

    Values are above 0.
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def short(value):
    """Format a number as a label: 1k, 10k, 1M, 0.25."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


class Axis:
    """Place values on one logarithmic axis."""

    def __init__(self, values, start, end):
        self.low, self.high = decades(values)
        self.start, self.end = start, end

    def at(self, value):
        """Return a position in pixels."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self):
        """Return the powers of ten on the axis."""
        return [10.0**exponent for exponent in range(self.low, self.high + 1)]


def text(x, y, words, anchor="middle", more=""):
    """Return one text element."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def _grid(x_axis, y_axis):
    out = []
    for value in x_axis.ticks():
        x = x_axis.at(value)
        out.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(text(x, HEIGHT - BOTTOM + 16, short(value)))
    for value in y_axis.ticks():
        y = y_axis.at(value)
        out.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        out.append(text(LEFT - 6, y + 4, short(value), "end"))
    return out


def _series(number, name, points, x_axis, y_axis):
    colour = COLOURS[number % len(COLOURS)]
    places = [(x_axis.at(x), y_axis.at(y), y) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y, _ in places)
    out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for x, y, value in places:
        out.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        out.append(text(x, y - 7, short(value), more=f'fill="{colour}"'))
    out.append(text(LEFT + 130 * number, 38, "— " + name, "start", f'fill="{colour}"'))
    return out


def svg(title, x_label, series):
    """Draw a plot.

    `series`: points (x, y), all above 0, by the series' name with its unit. Raises ValueError without a
    point.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        raise ValueError(f"{title}: nothing to plot")
    x_axis = Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = Axis([y for _, y in points], HEIGHT - BOTTOM, TOP + 14)
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 18, title, more='font-size="14"'),
        *_grid(x_axis, y_axis),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label),
    ]
    for number, (name, each) in enumerate(series.items()):
        out += _series(number, name, sorted(each), x_axis, y_axis)
    return "\n".join([*out, "</svg>"]) + "\n"
