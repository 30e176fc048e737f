"""What tests that cross a socket need: processes started and stopped by pid, and upstreams that misbehave."""
