"""Models put together with how they are guided and sampled, and what is made with them."""
