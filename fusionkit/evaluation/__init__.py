"""From predictions to figures about subjects, with intervals, and the report that holds them."""
