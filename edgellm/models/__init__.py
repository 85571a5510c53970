"""Models: the catalogue, the store on this machine, and what a GGUF file says of itself.

Import from the modules: `catalogue.load_catalogue`, `store.Store`, `resolve.resolve`, `gguf_info.inspect_gguf`.
"""
