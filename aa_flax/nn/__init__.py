"""Layers: batch norm, convolutions, pools, and the initial values of their weights."""
