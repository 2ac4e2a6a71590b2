"""From a run to the objects that carry it out: pure builders, in which the shape of the YAML stays visible.

`pod` is what all stages share, `storage` where things lie; one module per stage says what is its own.
"""
