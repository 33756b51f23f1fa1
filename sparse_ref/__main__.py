"""`python -m sparse_ref` is the command `sparse-ref`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
