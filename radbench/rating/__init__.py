"""Blind human rating of answers: which questions (`questions`), what was clicked (`store`), the page, and what it means."""
