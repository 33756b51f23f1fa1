"""`python -m sparse_ref` shows the idea; with arguments it is the command `sparse-ref`."""

import sys

from .cli import introduce, main

if __name__ == "__main__":
    sys.exit(main() if len(sys.argv) > 1 else introduce())
