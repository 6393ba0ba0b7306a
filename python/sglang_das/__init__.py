"""DAS: distribution-aware speculative decoding for RL rollouts. Importing this needs numpy at most."""
