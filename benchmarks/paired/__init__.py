"""The parts of the paired benchmark: inputs, servers, ways, scenarios, measures, report."""
