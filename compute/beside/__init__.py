"""Beside the device: what lets it decode without the host, and the policy that follows it."""
