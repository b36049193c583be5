"""`python -m vqserve` is the `vqserve` command."""

import sys

from vqserve.command_line import main

sys.exit(main())
