"""Images: from folders and arrays, or made up, to model input."""
