"""`python -m launcher` is the `triaxis` command."""

import sys

from launcher.cli import main

sys.exit(main())
