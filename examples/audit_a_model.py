# %% [markdown]
# # Audit somebody's model
#
# Is a model as robust as it is said to be? A scan says in a minute from which radius on it is
# fooled. An evaluation attacks it thoroughly, and checks whether the number can be trusted.

# %%
import torch
from torch import nn

import equipoise as eq
from equipoise import data

EPOCHS, IMAGES = 15, 200
digits = data.load("digits")


# %% [markdown]
# Somebody's model. It rounds its inputs, which hides gradients: attacks that only follow gradients
# find nothing, and the model seems to be robust.


# %%
class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net((x * 7).round() / 7)


torch.manual_seed(0)
model, x, y = Rounded(), digits.train.pixels(), digits.train.y
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(y)).split(64):
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# The scan, on a few hundred test images.

# %%
x, y, threat = digits.test.pixels()[:IMAGES], digits.test.y[:IMAGES], eq.Linf(0.1)
scan = eq.scan(model, x, y, threat=threat, classes=digits.classes)
print(scan)

# %% [markdown]
# The evaluation with one gradient attack, and with one that needs no gradients (Square). The
# checks say what is wrong with the first number.

# %%
gradient = eq.evaluate(model, x, y, threat=threat, attacks="pgd-20")
both = eq.evaluate(model, x, y, threat=threat, attacks="pgd-20,square(queries=300)")
print(f"clean {gradient.clean_accuracy:.1%}")
print(f"under PGD {gradient.robust_accuracy:.1%}, under both {both.robust_accuracy:.1%}")
for finding in gradient.findings:
    if finding.alarm:
        print(f"{finding.status}: {finding.check}: {finding.message}")
