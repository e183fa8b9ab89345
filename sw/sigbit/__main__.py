"""``python -m sigbit`` is the command ``sigbit``."""

import sys

from .cli import main

sys.exit(main())
