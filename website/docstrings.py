"""The extension of griffe that turns the docstrings of the package into Markdown."""

from typing import Any

import griffe

from website.markup import to_markdown

_OUTSIDE = ("torch", "sklearn", "filelock")
_log = griffe.get_logger("website.docstrings")


class Docstrings(griffe.Extension):
    """Rewrites all docstrings once the package is loaded, when every name can be looked up."""

    def on_package(self, *, pkg: griffe.Module, loader: Any, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        self._collection = loader.modules_collection
        self._rewrite(pkg)

    def _rewrite(self, holder: griffe.Object) -> None:
        if holder.docstring:
            text = to_markdown(holder.docstring.value, lambda name: self._link(name, holder))
            if isinstance(holder, griffe.Class) and "NamedTuple" in map(str, holder.bases):
                text = text.replace("Arguments:", "Attributes:")  # griffe sees no constructor
            holder.docstring.value = text
        members = [m for m in holder.members.values() if isinstance(m, griffe.Object)]
        for member in members:
            self._rewrite(member)
        if holder.is_init_module:  # shown module by module, each with what it says of itself
            exported = set(holder.exports or ())
            holder.exports = [
                member.name
                for member in members
                if not member.name.startswith("_")
                and (member.is_module or member.name in exported)
            ]

    def _link(self, name: str, holder: griffe.Object) -> str:
        """Return a link to a name as it stands in the docstring of an object."""
        path = self._found(name, holder)
        shown = f"`{name.rpartition('.')[2] if name.startswith('equipoise.') else name}`"
        if path:
            return f'<autoref identifier="{path}" optional>{shown}</autoref>'
        if name.partition(".")[0] not in _OUTSIDE:
            _log.warning(f"{holder.path}: a reference to {name}, which does not exist")
        return f"`{name}`"

    def _found(self, name: str, holder: griffe.Object) -> str | None:
        """Return the path of an object by its full name, or by one seen from where it is named."""
        first, _, rest = name.partition(".")
        try:
            path = name if first == "equipoise" else f"{holder.resolve(first)}.{rest}".strip(".")
            target = self._collection[path]
            return str(target.final_target.path if target.is_alias else target.path)
        except (griffe.NameResolutionError, griffe.AliasResolutionError, KeyError):
            return None
