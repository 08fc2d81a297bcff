"""What a conversion leaves behind: the exported folder and its other forms."""
