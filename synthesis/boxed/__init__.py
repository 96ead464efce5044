"""Synthesis in boxes, for grammars and tools that nobody vouches for: `synth --sandbox TIER`."""
