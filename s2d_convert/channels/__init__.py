"""Channel analysis: what every operator does to channels, and which channels are coupled."""
