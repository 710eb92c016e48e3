"""The constraints that a picked model has to meet, as the options of ``pick`` give them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from equipoise.errors import UserError
from equipoise.parsing import share

Kind = Literal[
    "max_clean_drop",
    "min_clean",
    "min_worst_class",
    "min_robust",
    "gamma",
    "min_third",
    "min_union",
]


@dataclass(frozen=True)
class Constraint:
    """The constraint that a picked model has to meet.

    Arguments:
        kind: The accuracy that is bounded, or ``"gamma"``: gamma is given.
        value: The bound, as a fraction; or gamma.
        reference: With ``"max_clean_drop"``: the clean accuracy that the drop is measured from.
        standard: Or the run whose model is the reference, on the same images.
        threat: Between three ends: the name of the threat in which robust accuracy is bounded;
            ``both`` for ``"min_union"``.
        also: Between three ends: further constraints that the model has to meet.
    """

    kind: Kind
    value: float
    reference: float | None = None
    standard: str | None = None
    threat: str = ""
    also: tuple["Constraint", ...] = ()

    @classmethod
    def of(
        cls,
        options: Mapping[Kind, float | str | None],
        reference: float | str | None = None,
        standard: str | None = None,
    ) -> "Constraint":
        """Return the one constraint that was given; accuracies as for :func:`share`.

        Arguments:
            options: Each kind with its value, or None.
            reference: The accuracy that a drop is measured from.
            standard: Or the run whose model is the reference.

        Raises:
            UserError: If there is none or more than one, or it can hold for no model.
        """
        given = {kind: value for kind, value in options.items() if value is not None}
        if len(given) != 1:
            expected = ", ".join(f"--{kind.replace('_', '-')}" for kind in options)
            got = " and ".join(f"--{kind.replace('_', '-')}" for kind in given) or "none"
            raise UserError(f"expected exactly one of {expected}; got {got}")
        ((kind, value),) = given.items()
        problems, values = [], dict[str, float]()
        for name, number in (*given.items(), ("reference", reference)):
            if number is not None and name != "gamma":
                try:
                    values[name] = share(number, f"--{name.replace('_', '-')}")
                except UserError as error:
                    problems.append(str(error))
        if values.get("max_clean_drop") == 1:
            problems.append(
                "--max-clean-drop of 1 allows any accuracy; one percentage point is 0.01 or 1%"
            )
        if kind != "max_clean_drop" and (reference is not None or standard is not None):
            problems.append("--reference and --standard need --max-clean-drop")
        if reference is not None and standard is not None:
            problems.append("give --reference or --standard, not both")
        if problems:
            raise UserError("; ".join(problems))
        bound = float(value) if kind == "gamma" else values[kind]
        return cls(kind, bound, values.get("reference"), standard)

    @classmethod
    def among_three(
        cls,
        options: Mapping[Kind, float | str | None],
        reference: float | str | None,
        standard: str | None,
        threats: Sequence[str],
    ) -> "Constraint":
        """Return the constraint between three ends, where robust accuracy may be bounded besides.

        Arguments:
            options: As for :meth:`of`, as are the next two.
            reference: The accuracy that a drop is measured from.
            standard: Or the run whose model is the reference.
            threats: The names of the two threats.

        Raises:
            UserError: If there is none, or it can hold for no model.
        """
        robust = options["min_robust"]
        rest = {k: None if k == "min_robust" else value for k, value in options.items()}
        if rest["gamma"] is not None:
            raise UserError(
                "between three ends a model is picked by its accuracies: --min-clean, --min-robust"
            )
        if robust is None:
            return cls.of(options, reference, standard)
        bounded = _robust(robust, threats)
        if {*rest.values(), reference, standard} == {None}:
            return replace(bounded[0], also=bounded[1:])
        return replace(cls.of(rest, reference, standard), also=bounded)

    @property
    def all(self) -> tuple["Constraint", ...]:
        """The constraint itself, and the further ones."""
        return (self, *self.also)

    @property
    def named(self) -> str:
        """The accuracy that is bounded."""
        if self.kind in ("max_clean_drop", "min_clean"):
            return "clean"
        if self.kind == "min_worst_class":
            return "clean in every class"
        return f"robust ({self.threat})" if self.threat else "robust"

    def content(self) -> Mapping[str, Any]:
        """Return the constraint as plain values."""
        content = asdict(replace(self, also=())) | {"in_words": str(self)}
        further = [constraint.content() for constraint in self.also]
        content |= {"also": further}
        return {k: v for k, v in content.items() if v or k not in ("threat", "also")}

    def __str__(self) -> str:
        if self.also:
            return " and ".join(str(replace(one, also=())) for one in self.all)
        if self.kind == "gamma":
            return f"gamma = {self.value:g}"
        if self.kind == "min_worst_class":
            return f"clean accuracy of every class at least {100 * self.value:g} %"
        if self.kind != "max_clean_drop":
            clean, _, threat = self.named.partition(" ")
            what = " ".join(filter(None, [clean, "accuracy", threat]))
            return f"{what} at least {100 * self.value:g} %"
        source = self.standard or f"{100 * (self.reference or 0):g} %"
        return f"at most {100 * self.value:g} points of clean accuracy less than {source}"


def _robust(value: float | str, threats: Sequence[str]) -> tuple[Constraint, ...]:
    """Return the constraints on robust accuracy between three ends: ``linf=0.5,l2=40%``."""
    if "=" not in str(value):
        return (Constraint("min_union", share(value, "--min-robust"), threat="both"),)
    kinds: dict[str, Kind] = dict(zip(threats, ("min_robust", "min_third"), strict=True))
    given = [word.partition("=")[::2] for word in str(value).split(",")]
    names = [name.strip() for name, _ in given]
    if not {*names} <= {*kinds} or len({*names}) < len(names):
        expected = ",".join(f"{name}=0.5" for name in threats)
        raise UserError(f"--min-robust expects 0.5 (in both threats) or {expected}, got {value}")
    return tuple(
        Constraint(kinds[name], share(text.strip(), f"--min-robust {name}"), threat=name)
        for name, (_, text) in zip(names, given, strict=True)
    )
