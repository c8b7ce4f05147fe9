"""How ranks talk to each other: one interface over nothing, torch.distributed, MPI and Horovod."""
