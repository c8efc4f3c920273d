"""`python -m immich_ml_compat` starts the server, as in the stock image; with arguments, it is the command line."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:] or ["serve"]))
