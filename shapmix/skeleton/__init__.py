"""Skeletons: joints, parts, bones."""
