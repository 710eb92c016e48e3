# %% [markdown]
# # Choose a trade-off between clean and robust accuracy
#
# One training holds the whole front: a clean and a robust branch, between which every mix of the
# weights is a usable model. The front is measured on held-out images, and a model is picked with
# bounds that hold for all measured models together.

# %%
from pathlib import Path

import equipoise as eq

OUT, ROUNDS, POINTS = Path("runs/a3gt"), 10, 5

# %%
run = eq.train("a3gt", OUT, data="digits", eps=0.15, rounds=ROUNDS)

# %%
front = eq.Front(OUT)
front.measure(points=POINTS)
print(front)

# %% [markdown]
# The most robust of the models whose clean accuracy is at least 90 %, with 95 % confidence. If
# none is that accurate, the error says which comes nearest.

# %%
try:
    picked = front.pick(min_clean=0.9)
    model, gamma = picked.model, picked.gamma
except (eq.RunError, eq.UserError) as error:
    print(error)
    picked = front.pick(gamma=0.5)
    model, gamma = picked.model, picked.gamma
print("gamma:", gamma)
