"""The one declaration of how a model is attacked and judged, and the stages that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import torch

from equipoise.attacks import check_norms, parse_list, without_clean
from equipoise.attacks.core import Attack, refuse, uncounted
from equipoise.attacks.ensemble import AutoAttack
from equipoise.errors import UserError
from equipoise.execution.policy import Execution
from equipoise.parsing import check_seed
from equipoise.threat import Norm, Threat

STAGED = "staged"  # the name of the ensemble that all attacks form where all are stages
DEFAULT = ("fgsm", "pgd-20", "mi-fgsm-10", "cw-inf-30")
_SEARCH = ("precision", "layout", "compile")  # of the execution


@dataclass(frozen=True)
class Stage:
    """One attack of an evaluation.

    Arguments:
        name: Its name in the result; of a stage of an ensemble ``ensemble/stage``.
        attack: The attack.
        ensemble: The ensemble it belongs to, or nothing.
        after: The stages whose survivors it attacks; of none all correct examples.
    """

    name: str
    attack: Attack
    ensemble: str = ""
    after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is attacked and judged: all that verdicts depend on but model and images.

    Arguments:
        attacks: Names as for :func:`equipoise.attacks.parse`, or attacks by names of your own;
            ``"clean"`` is always measured. None: those of :data:`DEFAULT` that are defined for
            the norm.
        norm: The norm of the threat; None: that of the model's training.
        eps: The radius; None: that of the training.
        low: The smallest value of an input.
        high: The largest value of an input.
        n: How many images, as a stratified sample (:func:`equipoise.data.draw`); None: all.
        first: Whether the first ``n`` of the set are taken instead.
        individual: True: the stages of ensembles, too, attack all correct examples. False: all
            attacks are stages, and attack what withstood those before. None: as named.
        seed: The seed of the attacks' randomness.
        batch_size: How many points are attacked at a time: memory and time, not results.
        execution: The arithmetic, layout and compilation of the search; the judge's arithmetic
            is float32 either way.
        passes: The forward passes of a verdict; None: what the attacks ask for.
        strongest: Whether PGD searches on for the point of the largest loss; see
            :func:`equipoise.evaluate`.
        checks: Whether to look for what would make the numbers untrustworthy.

    Raises:
        UserError: If an attack does not exist or is not defined for the norm, or a value will
            not do.
    """

    attacks: Mapping[str, Attack] | Sequence[str] | str | None = None
    norm: Norm | None = None
    eps: float | None = None
    low: float = 0.0
    high: float = 1.0
    n: int | None = None
    first: bool = False
    individual: bool | None = None
    seed: int = 0
    batch_size: int = 250
    execution: Execution = field(default_factory=Execution)
    passes: int | None = None
    strongest: bool = False
    checks: bool = True

    def __post_init__(self) -> None:
        if self.attacks is not None and not isinstance(self.attacks, Mapping):
            names = tuple(dict.fromkeys(without_clean(self.attacks)))
            object.__setattr__(self, "attacks", names)
        refuse(uncounted(self, "batch_size", *(["passes"] if self.passes is not None else [])))
        check_seed(self.seed)
        if self.eps is not None:
            Threat(self.norm or "linf", self.eps, self.low, self.high)
        named = self.named
        if self.norm is not None and self.attacks is not None:
            check_norms(named, self.norm)

    @property
    def named(self) -> dict[str, Attack]:
        """Return the attacks by name."""
        if isinstance(self.attacks, Mapping):
            return dict(self.attacks)
        if self.attacks is not None:
            return parse_list(self.attacks)
        known = parse_list(DEFAULT)
        return {k: a for k, a in known.items() if self.norm in (None, *getattr(a, "norms", ()))}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the attacks."""
        return tuple(self.named)

    @property
    def threat(self) -> Threat:
        """Return what the attacks are allowed, once norm and radius are known."""
        assert self.norm is not None, "see complete"
        assert self.eps is not None, "see complete"
        return Threat(self.norm, self.eps, self.low, self.high)

    @property
    def stages(self) -> Sequence[Stage]:
        """Return the attacks in the order in which they run, and whose survivors each attacks."""
        stages: list[Stage] = []
        for name, attack in self.named.items():
            if isinstance(attack, AutoAttack):
                assert self.norm is not None, "see complete"
                every = attack.stages(self.norm)
                parts, ensemble = {f"{name}/{part}": every[part] for part in every}, name
            else:
                parts, ensemble = {name: attack}, ""
            if self.individual is False:
                ensemble = STAGED
            before: list[str] = []
            for part, stage in parts.items():
                former = [s.name for s in stages] if self.individual is False else before
                after = () if self.individual else tuple(former)
                stages.append(Stage(part, stage, ensemble, after))
                before.append(part)
        return stages

    def under(self, threat: Threat) -> Self:
        """Return the same protocol with another threat."""
        return replace(self, **asdict(threat))

    def complete(self, norm: Norm, eps: float) -> Self:
        """Return the protocol with everything filled in that is that of the training.

        Arguments:
            norm: The norm of the training.
            eps: Its radius.

        Raises:
            UserError: If another norm is asked for without a radius in it, or an attack is not
                defined for the norm.
        """
        if self.norm not in (None, norm) and self.eps is None:
            raise UserError(
                f"a radius in {norm} means nothing in {self.norm}: give the radius with --eps"
            )
        norm = self.norm or norm
        filled = replace(self, norm=norm, eps=eps if self.eps is None else self.eps)
        return replace(filled, attacks=filled.names if self.attacks is None else self.attacks)

    def key(self, device: torch.device) -> dict[str, Any]:
        """Return what verdicts depend on beside the model and the images, as plain values."""
        return {
            "attacks": [str(attack) for attack in self.named.values()],
            "norm": self.threat.norm,
            "eps": repr(self.threat.eps),
            "individual": self.individual,
            "seed": self.seed,
            "search": str(self.execution.resolved(device)),
            "passes": self.passes,
            "strongest": self.strongest,
        }

    def content(self) -> dict[str, Any]:
        """Return the protocol as plain values, which :meth:`of` reads."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "execution"}
        search = {name: getattr(self.execution, name) for name in _SEARCH}
        return values | search | {"attacks": list(self.names)}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the protocol that plain values describe.

        Raises:
            UserError: If they describe none; an attack of the user's own has to be registered.
        """
        known = {f.name for f in fields(cls)} - {"execution"}
        given = {key: value for key, value in content.items() if key in known}
        search = {name: content[name] for name in _SEARCH if name in content}
        return cls(**given, execution=Execution(**search))
