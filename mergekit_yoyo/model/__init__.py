"""What a model or a merge on disk or on the Hub is: the ground floor of every capability."""
