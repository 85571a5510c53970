"""Chat: messages to prompt text and back, in every model family's own way. It knows no tokens and no tools' code.

Import from the modules: `template.ChatTemplate`, `continuation.Continuation`, `formats.choose_format`,
`parser.OutputParser`, `utf8.TextDecoder`.
"""
