"""The laboratory around the library: recipes, training, reports, reproduction of the paper, timings.

The library never imports it.
"""
