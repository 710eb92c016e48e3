"""The colours of pictures, twice: those of the page, which has two themes, and those of files."""

__all__ = ["FILE", "PAGE", "Look", "Palette", "look_of"]

from dataclasses import dataclass

from equipoise.report import drawing


@dataclass(frozen=True)
class Palette:
    """Colours to draw with.

    Arguments:
        ink: Of text and what matters.
        muted: Of axes and what stands back.
        faint: Of grids.
        series: Of lines.
        paper: The ground; None where the page has its own.
    """

    ink: str
    muted: str
    faint: str
    series: tuple[str, ...]
    paper: str | None


PAGE = Palette(drawing.INK, drawing.MUTED, drawing.FAINT, drawing.SERIES, None)

# Those of the light theme in page.css: a file is looked at on white.
FILE = Palette(
    "#1b1e22",
    "#5d646c",
    "#dfdfd9",
    ("#0068a8", "#cc5500", "#00805e", "#9a4a94", "#8a6d00", "#3688c4"),
    "#ffffff",
)


@dataclass(frozen=True)
class Look:
    """How an entry is drawn: a place in the series, or ``ink`` or ``muted``; dashes; a marker."""

    colour: int | str
    dashes: tuple[float, ...] = ()
    marker: str = "o"
    width: float = 1.5

    def of(self, palette: Palette) -> str:
        """Return its colour in a palette."""
        if isinstance(self.colour, int):
            return palette.series[self.colour % len(palette.series)]
        return palette.ink if self.colour == "ink" else palette.muted


# One look an entry in every picture. Controls that mix clean and adversarial loss share a colour.
_LOOKS = {
    "a3gt": Look(1, (), "o", 2.4),
    "a3gt-paper": Look(1, (1.5, 1.5), "h"),
    "generalist": Look(0, (), "s", 2.0),
    "standard": Look("muted", (2, 2), "X"),
    "pgd-at": Look(2, (5, 2), "^"),
    "pgd-at-averaged": Look(2, (), ">"),
    "mix-at-25": Look(2, (1.5, 1.5), "<"),
    "mix-at-50": Look(2, (3, 1.5), "v"),
    "trades": Look(3, (), "D"),
    "fat-trades": Look(3, (5, 2), "d"),
    "mart": Look(4, (), "p"),
    "fat-mart": Look(4, (5, 2), "H"),
    "fat": Look(5, (), "P"),
    "iat": Look(5, (1.5, 1.5), "X"),
    "yopo": Look("muted", (6, 2, 1.5, 2), "8"),
    "sat": Look("ink", (3, 1.5), "*"),
}
_MARKERS = "osD^vP*Xp<>h"


def look_of(entry: str, place: int) -> Look:
    """Return how an entry is drawn; entries without a look of their own take one by place."""
    dashes: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
    known = _LOOKS.get(entry)
    return known or Look(place % 6, dashes[place // 6 % 4], _MARKERS[place % len(_MARKERS)])
