"""What runs a study: its steps, engines, devices, logs and the check of the machine."""
