"""Search, plan, fetch, verify and repair models: the public face of the downloads."""
