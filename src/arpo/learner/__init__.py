"""Everything that owns tensors: packing, attention, losses, the policy and its optimizer. Imports `core` and foundations alone."""
