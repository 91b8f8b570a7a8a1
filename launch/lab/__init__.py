"""The laboratory's commands: record routing, look at it, replay it under any policy, and take advice."""
