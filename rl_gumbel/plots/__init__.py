"""Figures of runs over seeds: what is read, the statistics, and the drawing; numpy and matplotlib.

Nothing here imports torch: a figure of a hundred runs is there in seconds.
"""
