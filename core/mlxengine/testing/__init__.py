"""Conformance kit and fakes for people who write plugins."""
