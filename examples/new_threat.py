# %% [markdown]
# # A new threat
#
# A threat says which perturbations are allowed: attacks project onto it, and the judge asks it
# whether a point is allowed. Here it is a sticker: any values, in one corner of the image alone.

# %%
from dataclasses import dataclass

import torch

import equipoise as eq
from equipoise import data, models
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.standard import Standard

EPOCHS, IMAGES = 8, 200


# %%
@dataclass(frozen=True)
class Sticker(eq.Threat):
    """All perturbations of at most eps within the last rows and columns."""

    side: int = 3

    def free(self, x):
        mask = torch.zeros(x.shape[-2:], dtype=torch.bool, device=x.device)
        mask[-self.side :, -self.side :] = True
        return mask

    def projector(self, x):
        nearest, mask = super().projector(x), self.free(x)
        return lambda x_adv: torch.where(mask, nearest(x_adv), x)

    def contains(self, x, x_adv):
        same = (x_adv == x) | self.free(x)
        return super().contains(x, x_adv) & same.flatten(1).all(1)


threat = Sticker("linf", 1.0, side=3)

# %% [markdown]
# A model without and a model with stickers in its training.

# %%
digits = data.load("digits")
x, y = digits.train.pixels(), digits.train.y
trained = {}
for name, objective in {"standard": Standard(), "against stickers": Adversarial()}.items():
    torch.manual_seed(0)
    net, loss = (
        models.build("small-cnn", {**digits.settings, "width": 0.5}),
        objective.bind(threat),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            loss(net, x[batch], y[batch]).backward()
            optimizer.step()
    trained[name] = net

# %% [markdown]
# The attack returns its best points. What counts is confirmed: a sticker, and another answer.

# %%
x, y = digits.test.pixels()[:IMAGES], digits.test.y[:IMAGES]
attack, robust = eq.attacks.PGD(steps=40, restarts=2), {}
for name, net in trained.items():
    x_adv = attack(eq.fast(net), x, y, threat)
    assert threat.contains(x, x_adv).all()
    with torch.no_grad():
        clean, attacked = (net.eval()(images).argmax(1) == y for images in (x, x_adv))
    robust[name] = (clean & attacked).float().mean()
    print(f"{name}: clean {clean.float().mean():.1%}, with a sticker {robust[name]:.1%} at most")
