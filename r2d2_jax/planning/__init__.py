"""What a step needs, before chips are rented: memory, multiply-adds, traffic and time, as its program says."""
