"""`python -m vadapter` is the command `vadapter`."""

import sys

from vadapter.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
