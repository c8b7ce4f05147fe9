"""``hpcai500 micro``: the operations of the training steps, measured one by one with the shapes they have."""
