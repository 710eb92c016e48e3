"""Models as people write them: nothing in them knows of this project, or makes it easy for it."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from equipoise.execution import ask

SIDE, STEPS, BATCH = 16, 25, 48


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class Reshape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


def convolutions(flatten: nn.Module | None = None, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1, **options),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        flatten or nn.Flatten(),
        nn.Linear(16 * (SIDE // 4) ** 2, 10),
    )


class Around(nn.Module):
    """A net, and what is done before and after it."""

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        first: Callable[[Tensor], Tensor] | None = None,
        last: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.first, self.last = net or convolutions(), first, last

    def forward(self, x: Tensor) -> Any:
        out = self.net(x if self.first is None else self.first(x))
        return out if self.last is None else self.last(out)


def normalised_in_place(x: Tensor) -> Tensor:
    return x.sub_(0.45).mul_(4)


class Patches(nn.Module):
    """A small vision transformer, which looks at its first layer as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16) * 0.2)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x.to(self.projection.weight.dtype))
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        return self.head(self.norm(self.block(x + self.positions))[:, 0])


class WithoutBatches(nn.Module):
    """GroupNorm, LayerNorm over channels that are last for a moment, and InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.group, self.instance = nn.GroupNorm(4, 16), nn.InstanceNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + F.gelu(self.group(self.depthwise(x)))
        return self.head((x + 0.1 * self.instance(x)).amax((2, 3)))


class AlwaysDrops(nn.Module):
    """Forgets to tell dropout of the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*convolutions(), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.net(x), 1e-7, training=True)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.net = convolutions()

    def forward(self, x: Tensor) -> Any:
        return self.net[4:](checkpoint(self.net[:4], x, use_reentrant=self.reentrant))


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [convolutions(), Around(first=lambda x: normalised_in_place(x.clone()))]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).softmax(1) for member in self.members]).mean(0).log()


class Residual(nn.Module):
    """Shortcuts by a strided convolution of one pixel, and a norm that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.short = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(3, 16, 1, 2, bias=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.conv(F.relu(self.norm(h)) + 0.1 * h) + self.short(x)
        return self.head(F.adaptive_avg_pool2d(F.relu(h), 1).squeeze(-1).squeeze(-1))


def data_parallel() -> nn.Module:
    return nn.DataParallel(convolutions(View()))


def script() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and used
        return torch.jit.trace(fitted(convolutions()), torch.rand(2, 3, SIDE, SIDE))


def compiled() -> nn.Module:
    """Compile without a compiler: what matters here is what wraps the model."""
    return torch.compile(convolutions(View()), backend="eager")


def with_norms(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    net = convolutions()
    norm(net[0])
    norm(net[-1])
    return net


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and used
        return with_norms(nn.utils.weight_norm)


def hooked() -> nn.Module:
    """A net whose hooks change what its layers are given and return."""
    net = convolutions()
    net[0].register_forward_pre_hook(lambda module, given: (2 * given[0],))
    net[0].register_forward_hook(lambda module, given, out: out + module.weight.mean())
    net[1].register_forward_hook(lambda module, given, out: out * module.running_var.sqrt().mean())
    return net


def averaged() -> nn.Module:
    net = convolutions()
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    average.update_parameters(net)
    return average


def pruned() -> nn.Module:
    net = convolutions()
    prune.random_unstructured(net[0], "weight", 0.3)
    return net


class Half(nn.Module):
    """Computes its middle in bfloat16 by itself, with a flag that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = convolutions(), torch.tensor(2.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "logits": self.net(x) * self.scale}


STRANGERS: dict[str, Callable[[], nn.Module]] = {
    "view": lambda: convolutions(View()),
    "reshape": lambda: convolutions(Reshape()),
    "first layer in place": lambda: Around(first=normalised_in_place),
    "relu in place first": lambda: nn.Sequential(nn.ReLU(inplace=True), *convolutions()),
    "patches": Patches,
    "without batches": WithoutBatches,
    "residual": Residual,
    "left in training mode": lambda: nn.Sequential(
        *convolutions(View())[:-1], nn.Dropout(0.5), convolutions()[-1]
    ),
    "always drops": AlwaysDrops,
    "object": lambda: Around(last=lambda z: SimpleNamespace(logits=z)),
    "dict and a plain tensor": Half,
    "tuple": lambda: Around(last=lambda z: (z, z.mean())),
    "squeezed": lambda: Around(last=torch.squeeze),
    "data parallel": data_parallel,
    "script": script,
    "compiled": compiled,
    "weight norm": lambda: with_norms(parametrizations.weight_norm),
    "old weight norm": old_weight_norm,
    "spectral norm": lambda: with_norms(parametrizations.spectral_norm),
    "checkpoints": lambda: Checkpointed(reentrant=False),
    "reentrant checkpoints": lambda: Checkpointed(reentrant=True),
    "hooks": hooked,
    "pruned": pruned,
    "float64": lambda: convolutions().double(),
    "average": averaged,
    "ensemble": Ensemble,
}


# --- models of transformers and timm, of small configurations and without a download ---


def _of_transformers(kind: str, **config: Any) -> nn.Module:
    import transformers

    settings = getattr(transformers, f"{kind}Config")(
        image_size=SIDE, num_labels=10, num_channels=3, **config
    )
    return getattr(transformers, f"{kind}ForImageClassification")(settings)


_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "initializer_range": 0.2,
}

TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: _of_transformers("ViT", **_SMALL),
    "deit": lambda: _of_transformers("DeiT", **_SMALL),
    "swin": lambda: _of_transformers(
        "Swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, patch_size=2
    ),
    "convnext": lambda: _of_transformers(
        "ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2
    ),
    "resnet": lambda: _of_transformers(
        "ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
}


def _of_timm(name: str, **config: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **config)


TIMM: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: _of_timm(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=4, embed_dim=16, depth=2, num_heads=2
    ),
    "convnext": lambda: _of_timm("convnext_atto"),
    "resnet": lambda: _of_timm("resnet18"),
}


def examples(n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return images of ten kinds, with shape (n, 3, SIDE, SIDE), and their kinds."""
    generator = torch.Generator().manual_seed(0)
    kinds = F.interpolate(torch.rand(10, 3, 4, 4, generator=generator), size=SIDE)
    generator.manual_seed(seed)
    y = torch.randint(10, (n,), generator=generator)
    noise = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return (kinds[y] + 0.25 * noise).clamp(0, 1), y


def fitted(model: nn.Module) -> nn.Module:
    """Return a model after a few steps on examples: attacks on it have a way to go."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.005)
    x, y = examples(STEPS * BATCH)
    model.train()
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss = F.cross_entropy(ask(model, x[rows].to(weights[0].dtype)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with weights of seed 0, in eval mode unless it was left in another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        done = isinstance(model, torch.jit.ScriptModule)
        return model if done else fitted(model)
