r"""Two or three models of one architecture, and every model between their weights.

.. math:: \theta(\gamma) = (1 - \gamma) \, \theta_n + \gamma \, \theta_r

with the clean end :math:`\theta_n` at 0 and the robust end :math:`\theta_r` at 1, as for
``--weights gamma-0.4`` (:mod:`equipoise.store.weight_names`). The line continues beyond the ends;
a variance of BatchNorm that would fall below 0 there is set to 0. With a third end
:math:`\theta_3`, robust in another threat, it is the triangle of models

.. math:: \theta(\gamma, w) = (1 - \gamma - w) \, \theta_n + \gamma \, \theta_r + w \, \theta_3,
   \qquad \gamma, w \ge 0, \quad \gamma + w \le 1.

References:
    | Robust Fine-tuning of Zero-shot Models, WiSE-FT (Wortsman et al., 2022)
    | https://arxiv.org/abs/2109.01903
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from equipoise.attacks.pgd import PGD
from equipoise.data.core import Images
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.evaluation.protocol import Protocol
from equipoise.fronts.record import CORRUPTIONS, Place, shares
from equipoise.objectives.corrupted import Corrupted
from equipoise.settings import recipe as recipes
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.weight_names import PAIR, learner_name, mixable, weighted
from equipoise.threat import Threat
from equipoise.training.batchnorm import has_batchnorm, settle, some_batches
from equipoise.training.learner import derived_seed

BatchNorms = Literal["average", "estimate"]
BATCHNORMS = get_args(BatchNorms)

BATCH = 128  # images of a batch whose statistics are averaged
STEPS = 10  # of the attack on them
VARIANCE = "running_var"


@dataclass(frozen=True)
class End:
    """One end of the line.

    Arguments:
        name: Its name, or its path.
        run: The folder of its weights.
        model: The model, in eval mode, on the CPU.
    """

    name: str
    run: Run
    model: nn.Module

    @classmethod
    def named(cls, spec: str, run: Run) -> "End":
        """Return an end by name or path.

        Arguments:
            spec: A run folder, for its kept model; a .safetensors file in one; or weights of
                ``run`` by name, like ``round-005``.
            run: The run folder.
        """
        path = Path(spec)
        if path.is_dir():
            other = Run.open(path)
            return cls(spec, other, other.model())
        if path.suffix == ".safetensors":
            if not path.is_file():
                raise UserError(f"--ends: there is no file {spec}")
            other = Run(path.parent)
            return cls(spec, other, other.model(path.stem))
        return cls(spec, run, run.model(spec))

    def against(self, protocol: Protocol, eps: float) -> Protocol:
        """Return a protocol with the threat of its training, or with corruptions.

        Arguments:
            protocol: How the models of a front are attacked.
            eps: The radius where the recipe gives none.
        """
        recipe = recipes.stored(self.run)
        threat, every = recipe.threat(eps), recipe.settings.learners
        named = {learner_name(name): objective for name, objective in every.items()}
        objective = named.get(Path(self.name).stem, next(iter(every.values())))
        if isinstance(objective, Corrupted):
            return replace(protocol, norm="linf", eps=1.0, attacks=(CORRUPTIONS,))
        own = objective.against(threat) or threat
        return replace(protocol, norm=own.norm, eps=own.eps)


def learners(run: Run) -> tuple[str, ...]:
    """Return the names of a run's own ends: its clean and robust learner, and the first other one.

    Other ones are those that the recipe names in ``more``; the weights of the first must be there.
    """
    more = getattr(recipes.stored(run).settings, "more", {})
    further = [learner_name(name) for name in more]
    return (*PAIR, *(name for name in further[:1] if name in run.weights()))


@dataclass(frozen=True)
class Ends:
    """The clean and the robust end, and perhaps a third one.

    Arguments:
        clean: The end at gamma = 0.
        robust: The end at gamma = 1.
        third: An end that is robust in another threat; None: there are two ends.

    Raises:
        UserError: If they are not of one architecture, or are the same model.
    """

    clean: End
    robust: End
    third: End | None = None

    def __post_init__(self) -> None:
        for first, second in combinations(self.all, 2):
            _check_pair(first, second)

    @classmethod
    def of(cls, run: Run, names: Sequence[str]) -> "Ends":
        """Return two or three ends by name or path; :data:`PAIR` are the learners of the run.

        Raises:
            UserError: If the learners are wanted, and the run does not have exactly these two.
        """
        weights = run.weights()
        own = tuple(names[:2]) == PAIR
        if own and not mixable(weights):
            stored = f"it has {', '.join(weights)}" if weights else "it has no weights yet"
            raise UserError(
                f"{run.path} has no learners to measure a front between: a finished training of "
                f"two learners has {' and '.join(PAIR)}, but {stored}; name two models with "
                "--ends A B"
            )
        return cls(
            *(
                End(name, run, run.model(name))
                if own and name in weights
                else End.named(name, run)
                for name in names
            )
        )

    @property
    def all(self) -> tuple[End, ...]:
        """The ends, the clean one first."""
        return (self.clean, self.robust, *([self.third] if self.third else []))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the ends, the clean one first."""
        return tuple(end.name for end in self.all)

    def content(self) -> list[dict[str, str]]:
        """Return names and checksums of the ends as plain values."""
        return [{"name": end.name, "sha256": model_digest(end.model)} for end in self.all]

    def protocols(self, protocol: Protocol, usual: Threat, eps: float) -> list[Protocol]:
        """Return the protocol in the front's threat, and in that of a third end if there is one.

        Arguments:
            protocol: How each model is attacked.
            usual: The threat of the run's training.
            eps: The radius of the third end where its recipe gives none.

        Raises:
            UserError: If both threats are the same.
        """
        protocol, end = protocol.complete(usual.norm, usual.eps), self.third
        if end is None:
            return [protocol]
        also = end.against(protocol, eps)
        if also.threat == protocol.threat:
            raise UserError(
                f"the third end, {end.name}, was trained in the threat of the front, "
                f"{also.norm}, eps = {also.eps:g}: choose one of another threat, or measure "
                "between two ends"
            )
        return [protocol, also]

    def model(self, *place: float) -> nn.Module:
        """Return a new model, in eval mode, on the CPU, its statistics averaged.

        Arguments:
            place: The weights of the ends but the clean one: gamma, and that of a third end.
        """
        model = copy.deepcopy(self.robust.model)
        states = [end.model.state_dict() for end in self.all]
        state = weighted(states, shares(place))
        for name, value in state.items():
            state[name] = value.clamp_min(0) if name.endswith(VARIANCE) else value
        model.load_state_dict(state)
        return model.eval()


def _check_pair(first: End, second: End) -> None:
    """Raise a UserError if two ends are not of one architecture, or are the same model."""
    problems = _differences(first, second)
    if problems:
        raise UserError(
            f"{first.name} and {second.name} are not of one architecture "
            f"({'; '.join(problems)}): their weights cannot be mixed; choose two models that "
            "differ only in their training"
        )
    if model_digest(first.model) == model_digest(second.model):
        raise UserError(
            f"{first.name} and {second.name} have the same weights: choose two "
            "different models (after a hand-over in the last round, the learners are equal)"
        )


def model_at(
    ends: Ends, place: Place, batchnorm: BatchNorms, train: Images, threat: Threat, seed: int
) -> nn.Module:
    r"""Return the model at a place, on the device of the training images.

    BatchNorm statistics are estimated on a few batches. In each, a share :math:`\gamma` (in
    [0, 1]) of the images is under a PGD-10 attack on the model with averaged statistics.

    Arguments:
        ends: The ends.
        place: Gamma, the share of the robust end; with that of a third end where there is one,
            and then the statistics are averaged.
        batchnorm: Statistics of BatchNorm between the ends: averaged, or estimated.
        train: The training images.
        threat: The threat of the attack.
        seed: Chooses the images and the attack's draws.
    """
    model, gamma = ends.model(*place).to(train.y.device), place[0]
    if batchnorm == "average" or gamma in (0, 1) or not has_batchnorm(model):
        return model
    generator = torch.Generator(device=train.y.device).manual_seed(derived_seed(seed, "front"))
    attack = PGD(steps=STEPS, keep="last")
    inputs = []
    for batch in some_batches(train, min(BATCH, len(train)), generator, 1.0):
        count = round(min(max(gamma, 0.0), 1.0) * len(batch.y))
        x, y = batch.x[:count], batch.y[:count]
        draws = KeyedDraws.of(x, seed)
        inputs.append(torch.cat([attack(model, x, y, threat, draws=draws), batch.x[count:]]))
    settle(model, inputs)
    return model


def _differences(clean: End, robust: End) -> list[str]:
    """Return in what the architectures of two models differ, a phrase each."""
    first, second = (_description(end) for end in (clean, robust))
    problems = [
        f"{key} {first.get(key)} and {second.get(key)}"
        for key in first | second
        if first.get(key) != second.get(key)
    ]
    shapes = [
        {name: tuple(value.shape) for name, value in end.model.state_dict().items()}
        for end in (clean, robust)
    ]
    if not problems and shapes[0] != shapes[1]:
        problems.append("their weights have other names or shapes")
    return problems


def _description(end: End) -> dict[str, Any]:
    config = end.run.read_json("config.json")
    return {"model": config.get("model"), **dict(config.get("settings", {}))}
