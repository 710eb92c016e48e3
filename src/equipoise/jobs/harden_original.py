"""The model that a hardening is given: its folder, and how many images its floor is judged on."""

from collections.abc import Sequence

from torch import nn

from equipoise import data, plugins
from equipoise.data.core import Dataset
from equipoise.data.reading import settled
from equipoise.jobs.target_model import Subject
from equipoise.models.begin import described
from equipoise.settings.recipe import Recipe
from equipoise.store.runs import OWN, Run

HELD_OUT = 5000  # the most images on which the floor is judged, where nothing else is asked for


def original_of(
    run: Run, recipe: Recipe, dataset: Dataset, model: nn.Module, remarks: Sequence[str]
) -> Subject:
    """Return the model as it was given, with the folder of its results.

    Arguments:
        run: The folder; it is described as one of evaluations of a model of the user's own.
        recipe: The recipe of the hardening.
        dataset: Its data.
        model: The model.
        remarks: What was said about how it was read.
    """
    if not (run.path / OWN).is_file():
        weights, reading = described(recipe.weights) or {}, recipe.reading.given()
        content = {
            "format": 1,
            "model": recipe.model,
            "weights": weights.get("file"),
            "weights_key": weights.get("key", ""),
            "weights_sha256": weights.get("sha256"),
            "normalise": recipe.normalise,
            "data": settled(recipe.data, data.DATASETS),
            "data_dir": recipe.data_dir,
            **({"reading": reading} if reading else {}),
            "source": plugins.source(recipe.model.partition(":")[0]),
            "import": plugins.imported(),
            "remarks": [*remarks],
        }
        run.write_json(OWN, content)
    threat = recipe.threat(dataset.eps)
    return Subject(run, model, dataset, threat.norm, threat.eps)


def is_transformer(model: nn.Module) -> bool:
    """Return whether a model normalises layers and not batches, as transformers do.

    With SGD at the usual rate such a network ended with one answer to all images (docs/log.md).
    """
    kinds = [*map(type, model.modules())]
    batches = any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    return any(issubclass(kind, nn.LayerNorm) for kind in kinds) and not batches


def held_out_of(recipe: Recipe, dataset: Dataset) -> int:
    """Return how many images the floor is judged on by default: as many as there are."""
    if dataset.validation is not None:
        return min(HELD_OUT, len(dataset.validation))
    images = min(len(dataset.train), recipe.limit or len(dataset.train))
    return max(min(HELD_OUT, images // 5), 1)
