"""Tasks: what is predicted and how it is judged; the only room that knows Lightning."""
