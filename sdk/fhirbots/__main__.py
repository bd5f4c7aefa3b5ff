"""``python -m fhirbots``: the command."""

import sys

from fhirbots.cli import main

sys.exit(main())
