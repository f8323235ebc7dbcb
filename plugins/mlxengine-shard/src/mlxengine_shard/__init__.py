"""One language model over several ranks: `load(…, features={"shard.ranks": 2})`."""
