"""An event-driven checkout orchestrator for AltaPay: the shop hands over intents and consumes events."""
