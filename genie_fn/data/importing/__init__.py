"""Other people's videos into a dataset: finding, reading, resampling, action labels."""
