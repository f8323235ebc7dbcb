"""Several servers of the same models behind one address, for whoever starts their processes.

Each process makes a `Behind` and asks it for its `Figures`; whoever started it keeps a `Member`, told of them
(``arrived``) and of the process's end (``left``). `create_front` makes the application before all of them.
``mlxengine serve --replicas`` does this with Ray.
"""

from ._behind import Behind, Figures
from ._front import create_front
from ._members import Gone, Member

__all__ = ["Behind", "Figures", "Gone", "Member", "create_front"]
