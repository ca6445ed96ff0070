"""How parts learn: stages, the one loop, stored features, the device."""
