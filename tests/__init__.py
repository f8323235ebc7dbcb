"""Tests that cross packages, and what they stand on. A plugin's own tests live in its folder."""
