"""`python -m client` is the `vqserve` command."""

import sys

from client.command_line import main

sys.exit(main())
