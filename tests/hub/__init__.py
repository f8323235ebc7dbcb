"""A hub-compatible server on loopback, real weights laid out as repositories, and the tests on them."""
