"""Performance of the server, as ratios and against bars."""
