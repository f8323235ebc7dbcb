"""Ends the program that imports it."""

import sys

sys.exit("this library needs a licence")
