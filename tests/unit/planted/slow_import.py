"""Is in order, once it has been imported."""

import time

time.sleep(0.7)

from planted import Good  # noqa: E402

PLANTED = Good()
