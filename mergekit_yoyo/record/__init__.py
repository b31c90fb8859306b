"""What a merge did, tensor by tensor: a JSON-lines file with a documented schema."""
