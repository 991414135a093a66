"""Networks as graphs: capture, rules, plans and the executors that run them."""
