"""The ``mlxengine`` command."""
