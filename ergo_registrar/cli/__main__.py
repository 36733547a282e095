"""`python -m ergo_registrar.cli` is `ergo-registrar`."""

import sys

from ergo_registrar.cli import main

sys.exit(main())
