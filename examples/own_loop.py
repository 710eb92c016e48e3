# %% [markdown]
# # A training loop of your own
#
# Objectives are losses, and `eq.Merge` makes one model of a clean and a robust learner, as A3GT
# does. The page docs/own-loops.md has the same with Accelerate, transformers and Fabric.

# %%
import copy

import torch

import equipoise as eq
from equipoise import data, models
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.standard import Standard
from equipoise.training import Never

EPOCHS, threat = 8, eq.Linf(0.15)
digits = data.load("digits")
x, y = digits.train.pixels(), digits.train.y

# %%
torch.manual_seed(0)
first = models.build("small-cnn", {**digits.settings, "width": 0.5})
learners = {"clean": first, "robust": copy.deepcopy(first)}
losses = {"clean": Standard().bind(threat), "robust": Adversarial().bind(threat)}
optimizers = {name: torch.optim.Adam(net.parameters(), 3e-3) for name, net in learners.items()}
batches = len(y) // 64
rule = eq.Merge(gamma=0.5, horizon=1.0, every=None, start=Never())
merging = rule.over(learners, rounds=EPOCHS, steps=batches)
for epoch in range(EPOCHS):
    for batch in torch.randperm(len(y)).split(64)[:batches]:
        for name, net in learners.items():
            optimizers[name].zero_grad()
            losses[name](net, x[batch], y[batch], progress=epoch / EPOCHS).backward()
            optimizers[name].step()
        merging.update()
    merging.end_round()

# %%
x, y = digits.test.pixels()[:200], digits.test.y[:200]
for name, net in {**learners, "both, merged": merging.model}.items():
    result = eq.evaluate(net, x, y, threat=threat, attacks="pgd-10", checks=False)
    print(f"{name}: clean {result.clean_accuracy:.1%}, robust {result.robust_accuracy:.1%}")
