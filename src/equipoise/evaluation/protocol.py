"""The settings of an evaluation, and the order in which its attacks run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from equipoise.attacks import check_norms, parse_list, without_clean
from equipoise.attacks.core import Attack, refuse, uncounted
from equipoise.attacks.ensemble import Audited, Ensemble
from equipoise.errors import UserError
from equipoise.evaluation.outcome import Stage
from equipoise.execution.policy import Execution
from equipoise.parsing import check_seed
from equipoise.store.audit import check_nonce
from equipoise.threat import Norm, Threat

STAGED = "staged"  # the name of the ensemble of all attacks where all are stages
DEFAULT = ("fgsm", "pgd-20", "mi-fgsm-10", "cw-inf-30")
WEAKEST = 0.1  # the share of examples, those with the smallest margin, that "restarts" attacks
_USUAL, _MOST, _NUMBERS = 250, 1024, 2**16  # of a batch: inputs, and the numbers of tiny ones
_SEARCH = ("precision", "layout", "compile")  # of the execution


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is attacked and judged: everything verdicts depend on, but model and images.

    Arguments:
        attacks: Names as for :func:`equipoise.attacks.parse`, or attacks by names of your own;
            ``"clean"`` is always measured. None: those of :data:`DEFAULT` that are defined for
            the norm.
        norm: The norm of the threat; None: that of the model's training.
        eps: The radius; None: that of the training.
        low: The smallest value of an input.
        high: The largest value of an input.
        n: The size of the stratified sample (:func:`equipoise.data.draw`); None: all images.
        first: Whether the first ``n`` images are used instead of a sample.
        individual: As for :func:`equipoise.evaluate`.
        seed: The seed of the attacks' randomness.
        batch_size: How many points are attacked at a time: memory and time, not results; None:
            see :meth:`batch`.
        execution: The arithmetic, layout and compilation of the search; the judge's arithmetic
            is float32 either way.
        passes: The forward passes of a verdict; None: as the attacks need.
        strongest: Whether PGD continues to the point with the largest loss; see
            :func:`equipoise.evaluate`.
        checks: Whether to check for what would make the numbers untrustworthy.
        nonce: The text that determines which images an audit draws; None: the seed.
        part: Whether the inputs are a part of those that the verdicts are about; what looks at all
            of them, checks and audits, is then left out.

    Raises:
        UserError: If an attack does not exist or is not defined for the norm, or a value is
            invalid.
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
    batch_size: int | None = None
    execution: Execution = field(default_factory=Execution)
    passes: int | None = None
    strongest: bool = False
    checks: bool = True
    nonce: str | None = None
    part: bool = False

    def __post_init__(self) -> None:
        if self.attacks is not None and not isinstance(self.attacks, Mapping):
            names = tuple(dict.fromkeys(without_clean(self.attacks)))
            object.__setattr__(self, "attacks", names)
        refuse(uncounted(self, "batch_size", "passes"))
        check_seed(self.seed)
        check_nonce(self.nonce)
        if self.eps is not None:
            Threat(self.norm or "linf", self.eps, self.low, self.high)
        named = self.named
        if self.norm is not None and self.attacks is not None:
            check_norms(named, self.norm)
        audits = [name for name, attack in named.items() if isinstance(attack, Audited)]
        if len(audits) > 1:
            raise UserError(f"expected one audited search, got {' and '.join(audits)}")
        if audits and self.individual:
            raise UserError("audited runs its stages one after the other: not with --individual")
        if self.nonce is not None and self.attacks is not None and not audits:
            raise UserError("a nonce is for an audit: add audited to the attacks")

    @property
    def named(self) -> dict[str, Attack]:
        """Return the attacks by name."""
        if isinstance(self.attacks, Mapping):
            return dict(self.attacks)
        if self.attacks is not None:
            return parse_list(self.attacks)
        usual = parse_list(DEFAULT)
        return {k: a for k, a in usual.items() if self.norm in (None, *getattr(a, "norms", ()))}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the attacks."""
        return tuple(self.named)

    @property
    def threat(self) -> Threat:
        """Return the threat; norm and radius must be set."""
        assert self.norm is not None, "see complete"
        assert self.eps is not None, "see complete"
        return Threat(self.norm, self.eps, self.low, self.high)

    def batch(self, x: Tensor) -> int:
        """Return how many inputs like ``x``, (N, ...), are attacked at a time.

        By default 250, and up to 1,024 tiny ones, whose passes take little longer than one of few.
        """
        return self.batch_size or max(_USUAL, min(_MOST, _NUMBERS // max(x[0].numel(), 1)))

    @property
    def stages(self) -> Sequence[Stage]:
        """Return the attacks in the order in which they run."""
        stages: list[Stage] = []
        before: list[str] = []
        for name, attack in self.named.items():
            if isinstance(attack, Ensemble):
                assert self.norm is not None, "see complete"
                every, ensemble = attack.stages(self.norm), name
                parts = {f"{ensemble}/{part}": every[part] for part in every}
            else:
                parts, ensemble = {name: attack}, ""
            if self.individual is False:
                ensemble = STAGED
            else:
                before = []
            for part, stage in parts.items():
                after = () if self.individual else tuple(before)
                fewer = isinstance(attack, Audited) and part == f"{name}/restarts"
                if fewer and self.part:
                    continue  # it attacks the weakest of all
                share = WEAKEST if fewer else 1.0
                stages.append(Stage(part, stage, ensemble, after, share))
                before.append(part)
        return stages

    @property
    def audited(self) -> tuple[str, str, Audited] | None:
        """Return name, ensemble and settings of the audited search; None: there is none."""
        for name, attack in self.named.items():
            if isinstance(attack, Audited) and not self.part:
                return name, STAGED if self.individual is False else name, attack
        return None

    def under(self, threat: Threat) -> Self:
        """Return the same protocol with another threat.

        Raises:
            UserError: If it is of a class of the user's own, which is not stored.
        """
        if type(threat) is not Threat:
            raise UserError(
                f"an evaluation takes Linf, L2 or L1, not {type(threat).__name__}: attack the "
                "model with it, and count what threat.contains confirms"
            )
        return replace(self, **asdict(threat))

    def complete(self, norm: Norm, eps: float) -> Self:
        """Return the protocol with the norm, the radius and the attacks filled in.

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
        """Return what verdicts depend on, without model and images, as plain values."""
        drawn = {"nonce": self.nonce} if self.audited else {}
        return drawn | {
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
        apart = ("execution", "part")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        search = {name: getattr(self.execution, name) for name in _SEARCH}
        return values | search | {"attacks": list(self.names)}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the protocol that plain values describe.

        Raises:
            UserError: If they are invalid; an attack of the user's own has to be registered.
        """
        names = {f.name for f in fields(cls)} - {"execution"}
        values = {key: value for key, value in content.items() if key in names}
        search = {name: content[name] for name in _SEARCH if name in content}
        return cls(**values, execution=Execution(**search))
