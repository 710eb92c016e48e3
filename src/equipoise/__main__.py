"""``python -m equipoise``, or this file itself, without the current folder among the modules."""

import os
import sys

if sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]  # files of the current folder must not be imported
if not __package__:
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.append(top)  # last, so that it hides no other module

from equipoise.cli import main

if __name__ == "__main__":
    main()
