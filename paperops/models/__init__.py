"""The models of the papers, thin wrappers over the ops: one module a paper, imported when it is named."""
