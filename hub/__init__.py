"""Publishing on the Hugging Face Hub: which files go up, the cards, and a push for each kind of repository."""
