"""Long runs: checkpoints that tell whose they are, and work shared by `torch.distributed` ranks.

Imports the Protocols alone; knows no algorithm.
"""
