# %% [markdown]
# # Make a model robust, from a folder of photos
#
# A network that was trained as usual is easily fooled. `eq.harden` trains it further, keeps its
# clean accuracy within a floor, measures both models side by side, and writes a report.
#
# Put your own folder (`photos/CLASS/*.png`) and model in the place of those below.

# %%
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import equipoise as eq
from equipoise import data

PHOTOS, OUT = Path("photos"), Path("runs/hard")
EPOCHS, ROUNDS, EACH = 12, 6, 100  # of the usual training, of the hardening; pictures of a class

# %% [markdown]
# The photos: here scanned digits, written as PNG files.

# %%
digits = data.load("digits")
for label, name in enumerate(digits.classes[:4]):
    folder = PHOTOS / f"digit-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(digits.train.x[digits.train.y == label][:EACH]):
        Image.fromarray(pixels[0].numpy()).resize((16, 16)).save(folder / f"{number}.png")
photos = data.load(PHOTOS)
print(photos)


# %% [markdown]
# The model, trained as usual.


# %%
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16 * 8 * 8, 4)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


torch.manual_seed(0)
net, x, y = Net(), photos.train.pixels(), photos.train.y
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(y)).split(32):
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# The hardening: at most 2 points of clean accuracy may be lost, with 95 % confidence. Where there
# are too few photos to promise that, the nearest model is written, and how many would do is said.

# %%
result = eq.harden(
    net, photos, out=OUT, threat=eq.Linf(0.1), max_clean_drop=0.02, rounds=ROUNDS, batch_size=32
)
print("floor promised:", result.promised)
print(f"clean {result.clean_accuracy:.1%}, robust {result.robust_accuracy:.1%} at most")
print("report:", OUT / "report.html")

# %% [markdown]
# A file to serve: how pictures are prepared is in it. docs/serving.md loads it without equipoise.

# %%
exported = eq.export(OUT, OUT / "net.pt2", model=net)
print("logits differ by at most", exported["difference"])
print(exported["about"]["inputs"])
