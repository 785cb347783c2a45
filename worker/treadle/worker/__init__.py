"""Write workflows and steps, and run the workers that execute them."""
