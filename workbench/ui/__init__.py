"""The Gradio pages, and the player that they share with other pages."""
