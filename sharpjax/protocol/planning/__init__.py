"""What a registered number of seeds can detect: power by formula and by simulation."""
