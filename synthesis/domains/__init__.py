"""One grammar a file: entities, invariants, tools with effects, goal templates, phrases."""
