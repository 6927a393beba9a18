"""What holds for all tests."""

import signal

# Tests that were started in the background may have Ctrl-C ignored, which what they start inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)
