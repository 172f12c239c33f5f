"""What trainer and services both ask of the machine they run on."""
