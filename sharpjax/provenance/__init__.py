"""Where numbers come from: which code (`sources`) and which machine (`machine`)."""
