"""`python -m service`: the command, which hears SIGTERM before it is there, and has files to be imported from.

What the service is made of takes seconds to import. Without a handler the first process of a container is deaf to
SIGTERM meanwhile, and would go on to serve until it is killed. Ctrl-C is heard, as an exception, until the server takes
it over.
"""

import sys

from service.process.descriptors import raise_limit
from service.process.ending import end_at_hangup, tell_why_it_ends

if __name__ == "__main__":
    end_at_hangup()
    tell_why_it_ends()
    raise_limit()

    try:
        from service.process.command_line import main

        main()
    except ModuleNotFoundError as missing:
        sys.exit(f"cannot start: {missing}: pip install '.[service,cpu]' in the repository, or '.[service,gpu]'")
    except KeyboardInterrupt:
        sys.exit(130)
