"""The families of search spaces, their subnets and costs; growtas.space, subnet and cost lead to them."""
