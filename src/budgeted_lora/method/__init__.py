"""The paper's method. Read cost, schedule, controller, structure, projections, loss, loop, compress, in this order."""
