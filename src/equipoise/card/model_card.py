"""The ``README.md`` of a model on Hugging Face, with the numbers of its card."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from equipoise.card.exports import model_index
from equipoise.card.pages import brief, plain
from equipoise.card.schema import ModelCard
from equipoise.report.formats import markdown_text

_USE = {
    "pytorch": """\
`model.pt2` needs torch alone, `model.safetensors` the class of the network:

```python
import json
import torch

about = json.load(open("equipoise.json"))
model = torch.export.load("model.pt2").module()
images = torch.rand(1, *about["inputs"]["shape"])  # yours: see the inputs above
print(about["classes"][int(model(images).argmax(1))])
```
""",
    "transformers": """\
```python
from transformers import pipeline

print(pipeline("image-classification", model=".")("picture.png"))
```

It was judged on pictures that Pillow had prepared, as above; what the library makes of pictures of
another size may differ slightly.
""",
}


def readme(about: Mapping[str, Any], card: ModelCard | None, *, library: str = "pytorch") -> str:
    """Return the text of the file.

    Arguments:
        about: The description of an export, see :func:`equipoise.jobs.export.description`.
        card: The card of the model's evaluations; None: it was not evaluated.
        library: Whose code loads the model: ``pytorch`` or ``transformers``.
    """
    head: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "equipoise"],
    }
    if card is not None:
        head |= model_index(card)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        _title(about),
        brief(card) if card else "> **The model was not evaluated: its accuracy is not known.**\n",
        "## How to use it\n",
        "".join(f"- **{markdown_text(k)}**: {markdown_text(v)}\n" for k, v in _facts(about)),
        _USE[library],
    ]
    return "\n".join(parts)


def _title(about: Mapping[str, Any]) -> str:
    name = plain(f"{about['model']} on {about['data']}, weights {about['weights']}")
    return f"# {markdown_text(name)}\n"


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what whoever serves the model must know, as text."""
    constants = about["normalise"]
    where = f"{about['normalised']}: {json.dumps(constants)}"
    rows = {
        **{f"input {name}": value for name, value in about["inputs"].items()},
        "normalisation": where if constants else "inside the model, if there is any",
        "outputs": about["outputs"],
        "classes": ", ".join(map(str, about["classes"])),
        "checksum": about["sha256"],
        "made by": about["package"],
    }
    return [(name, plain(value)) for name, value in rows.items()]
