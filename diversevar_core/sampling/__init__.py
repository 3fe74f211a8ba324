"""The scale loop and its inputs: settings, schedule, conditions, seeds."""
