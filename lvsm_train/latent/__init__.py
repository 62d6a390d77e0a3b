"""What a scene's latents mean: edits, mixtures and maps of them, in pictures and figures. docs/latent.md."""
