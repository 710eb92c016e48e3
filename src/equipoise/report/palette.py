"""Colours and line styles of pictures: for the page, which has two themes, and for files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours: of text (``ink``), axes (``muted``), grids (``faint``), lines (``series``).

    ``paper`` is the background; None where the page has its own.
    """

    ink: str
    muted: str
    faint: str
    series: tuple[str, ...]
    paper: str | None


# The page replaces these by variables of its style sheet, so that one drawing serves both themes.
PAGE = Palette("#f1a000", "#f1a001", "#f1a002", tuple(f"#f1b00{i}" for i in range(6)), None)
VARIABLES = {PAGE.ink: "--ink", PAGE.muted: "--muted", PAGE.faint: "--rule"} | {
    colour: f"--series-{i}" for i, colour in enumerate(PAGE.series)
}

# Those of the light theme in page.css, on white.
FILE = Palette(
    "#1b1e22",
    "#5d646c",
    "#dfdfd9",
    ("#0068a8", "#cc5500", "#00805e", "#9a4a94", "#8a6d00", "#3688c4"),
    "#ffffff",
)


@dataclass(frozen=True)
class Style:
    """How a line is drawn; ``dashes`` are lengths of dashes and gaps, empty for a solid line.

    ``colour`` is a place in the series of the palette, or ``ink`` or ``muted``.
    """

    colour: int | str
    dashes: tuple[float, ...] = ()
    marker: str = "o"
    width: float = 1.5

    def of(self, palette: Palette) -> str:
        """Return its colour in a palette."""
        if isinstance(self.colour, int):
            return palette.series[self.colour % len(palette.series)]
        return palette.ink if self.colour == "ink" else palette.muted

    @property
    def variable(self) -> str:
        """The CSS variable of the colour."""
        return VARIABLES[self.of(PAGE)]

    @property
    def dasharray(self) -> str:
        """The dashes as SVG writes them."""
        return " ".join(f"{d * self.width:g}" for d in self.dashes) or "none"


# A method has one style in every picture. Mixtures of clean and adversarial loss share a colour.
_STYLES = {
    "a3gt": Style(1, (), "o", 2.4),
    "a3gt-paper": Style(1, (1.5, 1.5), "h"),
    "generalist": Style(0, (), "s", 2.0),
    "standard": Style("muted", (2, 2), "X"),
    "pgd-at": Style(2, (5, 2), "^"),
    "pgd-at-averaged": Style(2, (), ">"),
    "mix-at-25": Style(2, (1.5, 1.5), "<"),
    "mix-at-50": Style(2, (3, 1.5), "v"),
    "trades": Style(3, (), "D"),
    "fat-trades": Style(3, (5, 2), "d"),
    "mart": Style(4, (), "p"),
    "fat-mart": Style(4, (5, 2), "H"),
    "fat": Style(5, (), "P"),
    "iat": Style(5, (1.5, 1.5), "X"),
    "yopo": Style("muted", (6, 2, 1.5, 2), "8"),
    "gat": Style("ink", (), "v"),
    "sat": Style("ink", (3, 1.5), "*"),
}
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
_MARKERS = "osD^vP*Xp<>h"
LEARNERS = {
    "clean": Style(0, (4, 1.5)),
    "robust": Style(1, (1.5, 1.2)),
}
GLOBAL = Style("ink", (), width=2.2)


def style_of(name: str, place: int) -> Style:
    """Return the style of a method; of a name without one, the style of its place in a list."""
    other = Style(place % 6, _DASHES[place // 6 % 4], _MARKERS[place % len(_MARKERS)])
    return _STYLES.get(name, other)
