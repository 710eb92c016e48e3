"""Tables, figures and claims of the A3GT paper, from ``results.json`` to one page."""

from importlib.util import find_spec

from equipoise.errors import UserError

if find_spec("pandas") is None:
    raise UserError(
        "`equipoise reproduce` needs pandas for its tables, which is not installed; install it "
        "with: pip install 'equipoise[paper]'"
    )
