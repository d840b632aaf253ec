"""Tests of `fptt_dist.algorithm`."""
