r"""Two models of one architecture, and every model on the line between their weights.

.. math:: \theta(\gamma) = (1 - \gamma) \, \theta_n + \gamma \, \theta_r

with the clean end :math:`\theta_n` at 0 and the robust end :math:`\theta_r` at 1, as for
``--weights gamma-0.4`` (:mod:`equipoise.store.weight_names`). Beyond the ends the line goes on;
a variance of BatchNorm that would fall below 0 there is 0.

References:
    | Robust Fine-tuning of Zero-shot Models, WiSE-FT (Wortsman et al., 2022)
    | https://arxiv.org/abs/2109.01903
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from equipoise.attacks.pgd import PGD
from equipoise.data.core import Images
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.weight_names import PAIR, mix, mixable
from equipoise.threat import Threat
from equipoise.training.batchnorm import has_batchnorm, settle, some_batches
from equipoise.training.learner import derived_seed

BatchNorms = Literal["average", "estimate"]

BATCH = 128  # images of a batch whose statistics are averaged
STEPS = 10  # of the attack on them
VARIANCE = "running_var"


@dataclass(frozen=True)
class End:
    """One end of the line.

    Arguments:
        name: What it is called.
        run: The folder its weights are from.
        model: The model, in eval mode, on the CPU.
    """

    name: str
    run: Run
    model: nn.Module

    @classmethod
    def named(cls, spec: str, run: Run) -> "End":
        """Return the end that is given by name or path.

        Arguments:
            spec: A run folder, for its kept model; a .safetensors file in one; or weights of
                ``run`` by name, like ``round-005``.
            run: The run folder whose weights have names.
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


@dataclass(frozen=True)
class Ends:
    """The clean and the robust end.

    Arguments:
        clean: The end at gamma = 0.
        robust: The end at gamma = 1.

    Raises:
        UserError: If they are not of one architecture, or are the same model.
    """

    clean: End
    robust: End

    def __post_init__(self) -> None:
        problems = _differences(self.clean, self.robust)
        if problems:
            raise UserError(
                f"{self.clean.name} and {self.robust.name} are not of one architecture "
                f"({'; '.join(problems)}): their weights cannot be mixed; choose two models that "
                "differ in their training alone"
            )
        if model_digest(self.clean.model) == model_digest(self.robust.model):
            raise UserError(
                f"{self.clean.name} and {self.robust.name} have the same weights: there is "
                "nothing between them (learners that took over the global model last are equal)"
            )

    @classmethod
    def of_run(cls, run: Run) -> "Ends":
        """Return the clean and the robust learner of a run.

        Raises:
            UserError: If it does not have exactly these two.
        """
        there = run.weights()
        if not mixable(there):
            what = f"it has {', '.join(there)}" if there else "it holds no model yet"
            raise UserError(
                f"{run.path} has no front of its own: that is between the learners of a finished "
                f"run of exactly two ({' and '.join(PAIR)}), and {what}; name two models with "
                "--ends A B"
            )
        clean, robust = (End(name, run, run.model(name)) for name in PAIR)
        return cls(clean, robust)

    @property
    def names(self) -> tuple[str, str]:
        """What the ends are called, the clean one first."""
        return self.clean.name, self.robust.name

    def content(self) -> list[dict[str, str]]:
        """Return names and checksums of the ends as plain values."""
        return [
            {"name": end.name, "sha256": model_digest(end.model)}
            for end in (self.clean, self.robust)
        ]

    def model(self, gamma: float) -> nn.Module:
        """Return a new model from the line, in eval mode, on the CPU, its statistics averaged."""
        model = copy.deepcopy(self.robust.model)
        state = mix(self.clean.model.state_dict(), model.state_dict(), gamma)
        for name, value in state.items():
            state[name] = value.clamp_min(0) if name.endswith(VARIANCE) else value
        model.load_state_dict(state)
        return model.eval()


def model_at(
    ends: Ends, gamma: float, batchnorm: BatchNorms, train: Images, threat: Threat, seed: int
) -> nn.Module:
    """Return the model at a place of the line, on the device of the training images.

    Arguments:
        ends: The ends.
        gamma: The place.
        batchnorm: Statistics of BatchNorm: averaged, or estimated anew between the ends.
        train: The training images.
        threat: What the attack of the estimate is allowed.
        seed: Chooses its images and draws.
    """
    model = ends.model(gamma).to(train.y.device)
    if batchnorm == "estimate" and gamma not in (0, 1):
        return reestimated(model, gamma, train, threat, seed)
    return model


def reestimated(
    model: nn.Module, gamma: float, images: Images, threat: Threat, seed: int
) -> nn.Module:
    r"""Replace a mixed model's BatchNorm statistics by those on a mix of training images.

    Of each of a few batches the share :math:`\gamma` (in [0, 1]) is under a PGD-10 attack on the
    model as it was, the rest is clean: the mix that the model is meant for.

    Arguments:
        model: The model, changed in place; one without BatchNorm stays as it is.
        gamma: How much the robust end counts in it.
        images: The training images, on the device of the model.
        threat: What the attack is allowed.
        seed: Chooses the images and the attack's draws.
    """
    if not has_batchnorm(model):
        return model
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(derived_seed(seed, "front"))
    attack = PGD(steps=STEPS, keep="last")
    share = min(max(gamma, 0.0), 1.0)
    inputs = []
    for batch in some_batches(images, min(BATCH, len(images)), generator, 1.0):
        few = round(share * len(batch.y))
        x, y = batch.x[:few], batch.y[:few]
        draws = KeyedDraws.of(x, seed)
        inputs.append(torch.cat([attack(model, x, y, threat, draws=draws), batch.x[few:]]))
    settle(model, inputs)
    return model


def _differences(one: End, other: End) -> list[str]:
    """Return in what two models differ beside their weights, a phrase each."""
    first, second = (_description(end) for end in (one, other))
    problems = [
        f"{key} {first.get(key)} and {second.get(key)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    shapes = [
        {name: tuple(value.shape) for name, value in end.model.state_dict().items()}
        for end in (one, other)
    ]
    if not problems and shapes[0] != shapes[1]:
        problems.append("their weights have other names or shapes")
    return problems


def _description(end: End) -> dict[str, Any]:
    config = end.run.read_json("config.json")
    return {"model": config.get("model"), **dict(config.get("settings", {}))}
