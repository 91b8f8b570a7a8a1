"""Eviction policies: one file each; `named` finds them."""
