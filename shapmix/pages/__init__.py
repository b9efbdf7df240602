"""Pages that a browser shows offline."""
