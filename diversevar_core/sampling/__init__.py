"""The scale loop, and what it is told: settings, schedule, conditions, seeds."""
