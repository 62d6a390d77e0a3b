"""The verb `latent`: edits, mixtures and maps of a scene's latents, in pictures and figures. docs/latent.md."""
