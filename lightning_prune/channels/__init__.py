"""How channels run through a graph, and how they are removed."""
