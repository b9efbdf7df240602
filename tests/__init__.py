"""Tests in the folders of what they test, and beside them what they share. A test imports helpers, never another test."""
