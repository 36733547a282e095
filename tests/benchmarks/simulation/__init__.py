"""What a cluster of any size would cost, from what was measured of small ones."""
