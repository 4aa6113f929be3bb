"""What ranks do together: Accelerate, FSDP2, collectives, heartbeats."""
