"""How a meta-batch is computed: which way, at what precision, in how much memory."""
