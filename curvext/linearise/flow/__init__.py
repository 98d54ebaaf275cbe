"""Which samples meet where: proven from what each operation does, by structure or by the indices it goes by."""
