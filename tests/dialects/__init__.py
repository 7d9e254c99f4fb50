"""Tests of `gateway/dialects`, one file per source file."""
