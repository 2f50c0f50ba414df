"""What a registered number of seeds can see: power by formula and by simulation."""
