"""The order of an evaluation: which attack runs on which examples."""

__all__ = ["STAGED", "Stage", "plan"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.attacks import Attack, AutoAttack
from equipoise.threat import Norm

STAGED = "staged"  # the name of the ensemble that all attacks form where all are stages


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


def plan(attacks: Mapping[str, Attack], norm: Norm, individual: bool | None) -> Sequence[Stage]:
    """Return the stages of an evaluation, in the order in which they run.

    Arguments:
        attacks: Attacks and ensembles by name.
        norm: The norm of the threat.
        individual: As for :func:`equipoise.evaluate`.
    """
    stages: list[Stage] = []
    for name, attack in attacks.items():
        if isinstance(attack, AutoAttack):
            parts = {f"{name}/{part}": found for part, found in attack.stages(norm).items()}
            ensemble = name
        else:
            parts, ensemble = {name: attack}, ""
        if individual is False:
            ensemble = STAGED
        before: list[str] = []
        for part, found in parts.items():
            former = [stage.name for stage in stages] if individual is False else before
            after = () if individual else tuple(former)
            stages.append(Stage(part, found, ensemble, after))
            before.append(part)
    return stages
