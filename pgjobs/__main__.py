"""`python -m pgjobs` is the command `pgjobs`."""

import sys

from pgjobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
