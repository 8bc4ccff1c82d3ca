"""`python -m holdfast.compat.demo`: how the demo starts its own parts."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
