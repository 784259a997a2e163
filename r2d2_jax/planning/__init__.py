"""What a step needs, before chips are rented: memory, multiply-adds, traffic and time, read from the compiled program."""
