"""Other people's networks with their published weights, and how each is judged; run by ``other_networks.py`` beside."""
